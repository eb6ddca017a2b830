import { cpSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import { generateFamily } from '../../fixtures/generate-family.js';
import { expected } from '../../fixtures/inference.js';
import { EVALUATION_TEXT, TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH, thoroughBut } from '../../fixtures/thorough.js';
import { BudgetTooSmallError, OptionError, UnlikeModelsError } from '../../src/errors.js';
import { parseBytes } from '../../src/format.js';
import { compress } from './compress.js';
import { evaluate, type ModelScore } from './evaluate.js';
import { expand } from './expand.js';

const root = temporaryFolder();
const at = (name: string) => join(root, name);
const text = readFileSync(EVALUATION_TEXT, 'utf8');
const ONE = { threads: 1 };

const predictions = expected.nll.length * (expected.window - 1);
const mean = (sums: readonly number[]): number => sums.reduce((sum, it) => sum + it, 0) / predictions;

test("the trained fixture's nll is transformers'", async () => {
  const { models, window, textBytes } = await evaluate([TINY_MODEL], text, ONE);
  const [score] = models as [ModelScore];
  expect({ window, textBytes }).toEqual({ window: expected.window, textBytes: Buffer.byteLength(text) });
  expect(score).toMatchObject({ windows: expected.nll.length, predictions });
  expect(Math.abs(score.nll - mean(expected.nll))).toBeLessThan(1e-6);
  expect(score.nllPerByte).toBeCloseTo(score.nll, 12); // each token is one byte
  expect(score.perplexity).toBeCloseTo(Math.exp(mean(expected.nll)), 4);
});

test('with two experts a token, too', async () => {
  const { models } = await evaluate([TINY_MODEL], text, { ...ONE, expertsPerToken: 2 });
  expect(models[0]?.expertsPerToken).toBe(2);
  expect(Math.abs((models[0]?.nll as number) - mean(expected.nll_two_experts))).toBeLessThan(1e-6);
});

test('the first window alone has its own sum', async () => {
  const { models } = await evaluate([TINY_MODEL], text.slice(0, expected.window), ONE);
  expect(Math.abs((models[0]?.nll as number) * 255 - (expected.nll[0] as number))).toBeLessThan(1e-3);
});

test('a text shorter than a window is one', async () => {
  const { models, window } = await evaluate([TINY_MODEL], text.slice(0, 40), ONE);
  expect(window).toBe(40);
  expect(models[0]).toMatchObject({ windows: 1, predictions: 39 });
});

test('says how far it is', async () => {
  const seen: number[][] = [];
  await evaluate([TINY_MODEL], text, ONE, { onWindow: (_, done, windows) => seen.push([done, windows]) });
  expect(seen).toEqual([
    [4, 6],
    [6, 6],
  ]);
});

describe('a conversion', () => {
  const quick = { bases: 8, steps: 20, activation: 'tanh', ...ONE } as const;
  beforeAll(async () => {
    await compress(TINY_MODEL, at('native'), quick);
    await compress(TINY_MODEL, at('hf'), { ...quick, format: 'hf' });
    await expand(at('native'), at('expanded'), ONE);
  });

  test('compared with its source: it lost something, in every layer, and its formats agree', THOROUGH, async () => {
    const result = await evaluate([at('native'), at('hf'), at('expanded')], text, { ...ONE, against: TINY_MODEL });
    const [source, native, hf, expanded] = result.models as [ModelScore, ModelScore, ModelScore, ModelScore];
    expect(result.models.map(({ model }) => model)).toEqual([TINY_MODEL, at('native'), at('hf'), at('expanded')]);
    expect(source.comparison).toBeUndefined();
    expect(Math.abs(source.nll - mean(expected.nll))).toBeLessThan(1e-6);
    // The native weights are A·f(ΣαB) before they are rounded to bf16.
    expect(Math.abs(native.nll - hf.nll)).toBeLessThan(0.01);
    expect(expanded.nll).toBe(hf.nll);
    expect(native.nll).toBeGreaterThan(source.nll + 0.02);
    for (const { comparison } of [native, hf]) {
      expect(comparison?.with).toBe(TINY_MODEL);
      expect(comparison?.divergence).toBeGreaterThan(0.01);
      expect(comparison?.agreement).toBeGreaterThan(0.5);
      expect(comparison?.agreement).toBeLessThan(1);
      expect(comparison?.layerErrors).toHaveLength(4);
      for (const error of comparison?.layerErrors ?? []) expect(error).toBeGreaterThan(0.01);
    }
    const tiny = await evaluate([at('native')], text, { ...ONE, against: at('hf') });
    expect(tiny.models[1]?.comparison?.divergence).toBeLessThan(1e-3);
  });

  test('with a model compared with itself: nothing is lost', async () => {
    const { models } = await evaluate([at('hf')], text.slice(0, 600), { ...ONE, against: at('expanded') });
    expect(models[1]?.comparison).toMatchObject({ divergence: 0, agreement: 1, layerErrors: [0, 0, 0, 0] });
    expect(models[1]?.comparison).toMatchObject({ nllDifference: 0, standardError: 0 });
  });

  test('the standard error of a difference is that of the windows', async () => {
    const score = async (part: string): Promise<[ModelScore, ModelScore]> =>
      (await evaluate([at('hf')], part, { ...ONE, window: 128, against: TINY_MODEL })).models as [
        ModelScore,
        ModelScore,
      ];
    const differences: number[] = [];
    for (const from of [0, 128, 256]) {
      const [source, changed] = await score(text.slice(from, from + 128));
      differences.push(changed.nll - source.nll);
      expect(changed.comparison).not.toHaveProperty('standardError');
    }
    const [source, changed] = await score(text.slice(0, 384));
    const expected = differences.reduce((sum, it) => sum + it, 0) / 3;
    const variance = differences.reduce((sum, it) => sum + (it - expected) ** 2, 0) / 2;
    expect(changed.comparison?.nllDifference).toBeCloseTo(expected, 6);
    expect(changed.comparison?.nllDifference).toBeCloseTo(changed.nll - source.nll, 9);
    expect(changed.comparison?.standardError).toBeCloseTo(Math.sqrt(variance / 3), 6);
    expect(changed.comparison?.standardError).toBeGreaterThan(1e-3);
  });

  test('the number of experts a token is that of the models, not of what they are compared with', async () => {
    const { models } = await evaluate([at('native')], text, { ...ONE, against: TINY_MODEL, expertsPerToken: 3 });
    expect(models.map((it) => it.expertsPerToken)).toEqual([undefined, 3]);
    expect(Math.abs((models[0]?.nll as number) - mean(expected.nll))).toBeLessThan(1e-6);
  });

  const cost = thoroughBut('two layers, one projection');
  for (const [name, options] of [
    ['two groups', { groups: 2 }],
    ['all projections, a lower rank', { projections: ['gate_proj', 'up_proj', 'down_proj'], rank: 24 }],
    ['two layers, one projection', { layers: [1, 3], projections: ['up_proj'] }],
  ] as const)
    test(`in f32 gives the same natively and expanded: ${name}`, cost(name), async () => {
      const native = at(`${name}-native`);
      const f32 = { ...quick, ...structuredClone(options), steps: 5, dtype: 'float32' } as Parameters<
        typeof compress
      >[2];
      await compress(TINY_MODEL, native, f32, LARGER);
      await expand(native, at(`${name}-expanded`), ONE);
      const { models } = await evaluate([native], text.slice(0, 512), { ...ONE, against: at(`${name}-expanded`) });
      const [expanded, factors] = models as [ModelScore, ModelScore];
      expect(Math.abs(expanded.nll - factors.nll)).toBeLessThan(1e-5);
      for (const error of factors.comparison?.layerErrors ?? []) expect(error).toBeLessThan(1e-4);
    });
});

describe('is refused:', () => {
  test.each<[string, string, Parameters<typeof evaluate>[2], string]>([
    ['a text of one token', 'x', {}, 'at least two'],
    ['a window beyond the context', text, { window: 512 }, 'made for 256'],
  ])('%s', async (_, own, options, words) => {
    const error = await evaluate([TINY_MODEL], own, options).catch((it) => it);
    expect(error).toBeInstanceOf(OptionError);
    expect(error.message).toContain(words);
  });

  test('a comparison of models that are not alike', async () => {
    await generateFamily(at('other'), 'qwen3_moe', { config: { max_position_embeddings: 64 } });
    cpSync(join(TINY_MODEL, 'tokenizer.json'), join(at('other'), 'tokenizer.json'));
    await expect(evaluate([at('other')], text, { ...ONE, against: TINY_MODEL })).rejects.toThrow(UnlikeModelsError);
  });
});

test('the budget that a refusal names works, for one model as for two', async () => {
  for (const folders of [[TINY_MODEL], [TINY_MODEL, TINY_MODEL]]) {
    const score = (maxMemory: number) => evaluate(folders, text.slice(0, expected.window), { ...ONE, maxMemory });
    const refused = await score(2 ** 20).catch((error) => error);
    expect(refused).toBeInstanceOf(BudgetTooSmallError);
    await expect(score(refused.smallestBytes - 4096)).rejects.toThrow(BudgetTooSmallError);
    expect((await score(parseBytes(refused.smallest) as number)).models).toHaveLength(folders.length);
  }
});
