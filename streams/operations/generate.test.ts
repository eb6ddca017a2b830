import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { generateFamily } from '../../fixtures/generate-family.js';
import { reference } from '../../fixtures/inference.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import {
  InterruptedError,
  MissingExpertError,
  MissingTensorError,
  OptionError,
  UnsupportedModelError,
} from '../../src/errors.js';
import type { GenerateOptions } from '../../src/inference/run-options.js';
import { type Generation, generate } from './generate.js';

const root = temporaryFolder();

async function complete(prompt: string, options: GenerateOptions = {}, folder = TINY_MODEL) {
  const pieces: string[] = [];
  const run = generate(folder, prompt, { threads: 1, ...options });
  let step = await run.next();
  for (; !step.done; step = await run.next()) pieces.push(step.value);
  return { pieces, text: pieces.join(''), figures: step.value as Generation };
}

test("the most likely tokens are the reference's text, which comes piece by piece", async () => {
  const [{ prompt, greedy_text }] = reference.prompts as [(typeof reference.prompts)[number]];
  const { text, pieces, figures } = await complete(prompt, { maxNewTokens: 64 });
  expect(text).toBe(greedy_text);
  expect(pieces.length).toBe(64);
  expect(figures).toMatchObject({ promptTokens: prompt.length, newTokens: 64, stopped: 'length' });
  expect(figures.tokensPerSecond).toBeGreaterThan(1);
});

test('a seed chooses the text; the same one the same text', async () => {
  const options = { maxNewTokens: 40, temperature: 0.9, topP: 0.95 };
  const one = await complete('class ', { ...options, seed: 1 });
  expect((await complete('class ', { ...options, seed: 1 })).text).toBe(one.text);
  expect((await complete('class ', { ...options, seed: 2 })).text).not.toBe(one.text);
});

test('the text ends where the model ends it, and the end token is no text', async () => {
  const folder = join(root, 'newline-ends');
  cpSync(TINY_MODEL, folder, { recursive: true });
  writeFileSync(join(folder, 'generation_config.json'), '{"eos_token_id": [256, 10]}');
  const { text, figures } = await complete('def f(x):\n    return', { maxNewTokens: 200 }, folder);
  expect(figures.stopped).toBe('end');
  expect(text).not.toContain('\n');
  expect(figures.newTokens).toBe(Buffer.byteLength(text) + 1);
});

test('the text ends with the context', async () => {
  const { figures } = await complete('x'.repeat(250), { maxNewTokens: 100 });
  expect(figures).toMatchObject({ stopped: 'context', newTokens: 7 });
});

describe('is refused before anything is computed:', () => {
  test.each<[string, string, GenerateOptions, string]>([
    ['an empty prompt', '', {}, '--prompt'],
    ['a prompt longer than the context', 'x'.repeat(300), {}, 'made for 256'],
    ['too many experts a token', 'x', { expertsPerToken: 40 }, '--experts-per-token'],
    ['a share above 1', 'x', { topP: 1.5 }, '--top-p'],
    ['a temperature below 0', 'x', { temperature: -1 }, '--temperature'],
  ])('%s', async (_, prompt, options, words) => {
    const error = await complete(prompt, options).catch((it) => it);
    expect(error).toBeInstanceOf(OptionError);
    expect(error.message).toContain(words);
  });

  test('a model of another architecture, by its model_type', async () => {
    const folder = join(root, 'mixtral');
    await generateFamily(folder, 'mixtral');
    cpSync(join(TINY_MODEL, 'tokenizer.json'), join(folder, 'tokenizer.json'));
    await expect(complete('x', {}, folder)).rejects.toThrow(UnsupportedModelError);
    await expect(complete('x', {}, folder)).rejects.toThrow('"mixtral"');
  });

  test.each([
    [/self_attn\.q_norm/, MissingTensorError],
    [/layers\.1\.mlp\.experts\.5\.up_proj/, MissingExpertError],
  ])('a checkpoint without %s', async (missing, kind) => {
    const folder = join(root, `without-${missing.source.replace(/\W/g, '')}`);
    await generateFamily(folder, 'qwen3_moe', {
      alter: (tensors) => tensors.filter(({ name }) => !missing.test(name)),
      config: { max_position_embeddings: 64 },
    });
    cpSync(join(TINY_MODEL, 'tokenizer.json'), join(folder, 'tokenizer.json'));
    await expect(complete('x', {}, folder)).rejects.toThrow(kind);
  });

  test('a config whose sizes are not those of the weights', async () => {
    const folder = join(root, 'other-config');
    cpSync(TINY_MODEL, folder, { recursive: true });
    const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'));
    writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...config, num_attention_heads: 8 }));
    await expect(complete('x', {}, folder)).rejects.toThrow('q_proj.weight');
  });
});

test('an interruption ends it with its own error', async () => {
  const controller = new AbortController();
  const run = generate(TINY_MODEL, 'def', { threads: 1 }, { signal: controller.signal });
  await run.next();
  controller.abort();
  await expect(
    (async () => {
      for await (const _ of run);
    })(),
  ).rejects.toThrow(InterruptedError);
});
