import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { expected, reference } from '../../fixtures/inference.js';
import { CLI, EVALUATION_TEXT, TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';

const mobe = (...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> =>
  new Promise((resolve) => {
    execFile(process.execPath, [CLI, ...args], (error, stdout, stderr) =>
      resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
    );
  });

const [{ prompt, greedy_text }] = reference.prompts as [(typeof reference.prompts)[number]];
const shortText = join(temporaryFolder(), 'text');
writeFileSync(shortText, readFileSync(EVALUATION_TEXT).subarray(0, 100));
const nll = expected.nll.reduce((sum, it) => sum + it, 0) / (255 * expected.nll.length);

test('generate writes the text to stdout, and to stderr how fast', async () => {
  const { code, stdout, stderr } = await mobe('generate', TINY_MODEL, '--prompt', prompt, '--max-new-tokens', '30');
  expect({ code, stdout }).toEqual({ code: 0, stdout: `${greedy_text.slice(0, 30)}\n` });
  expect(stderr).toMatch(/25 tokens of prompt in .*; 30 new .* tokens\/s; .* read, peak memory/);
});

test('generate --json prints one object: prompt, text and figures', async () => {
  const { code, stdout, stderr } = await mobe(
    'generate',
    TINY_MODEL,
    '--prompt',
    prompt,
    '--max-new-tokens',
    '9',
    '--json',
  );
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(JSON.parse(stdout)).toEqual({
    prompt,
    text: greedy_text.slice(0, 9),
    promptTokens: 25,
    newTokens: 9,
    promptSeconds: expect.any(Number),
    readOnceBytes: expect.any(Number),
    seconds: expect.any(Number),
    tokensPerSecond: expect.any(Number),
    stopped: 'length',
    bytesRead: expect.any(Number),
    peakRssBytes: expect.any(Number),
  });
});

test('generate writes each token when it is there, and an interruption ends it with 130', async () => {
  const flags = ['--prompt', 'a', '--max-new-tokens', '200', '--threads', '1'];
  const child = spawn(process.execPath, [CLI, 'generate', TINY_MODEL, ...flags]);
  const exit = once(child, 'exit');
  let pieces = 0;
  let errors = '';
  child.stderr.on('data', (data) => {
    errors += data;
  });
  child.stdout.on('data', () => {
    if (++pieces === 1) child.kill('SIGINT');
  });
  expect(await exit).toEqual([130, null]);
  expect(pieces).toBeGreaterThan(0);
  expect(errors).toContain('stopping');
});

test('eval prints a table of several models, or JSON', async () => {
  const table = await mobe('eval', TINY_MODEL, TINY_MODEL, '--text', EVALUATION_TEXT);
  expect(table.code).toBe(0);
  expect(table.stdout.match(new RegExp(nll.toFixed(5), 'g'))).toHaveLength(4);
  expect(table.stdout).toContain('6 windows of 256 tokens, 1530 predictions');

  const { stdout } = await mobe('eval', TINY_MODEL, '--text', shortText, '--json', '--experts-per-token', '2');
  expect(JSON.parse(stdout).models[0]).toMatchObject({ model: TINY_MODEL, expertsPerToken: 2, predictions: 99 });
});

test('eval --against adds what was lost, and the error after each layer', async () => {
  const flags = ['--against', TINY_MODEL, '--experts-per-token', '3', '--text', shortText];
  const { stdout } = await mobe('eval', `${TINY_MODEL}/`, ...flags);
  expect(stdout).toMatch(/model +experts +nll\/token +nll\/byte +perplexity +KL +same top-1/);
  expect(stdout).toContain('error after layer');
});

test('calibrate --script names a file of the package, and needs no model', async () => {
  const { code, stdout } = await mobe('calibrate', '--script');
  expect(code).toBe(0);
  expect(readFileSync(stdout.trim(), 'utf8')).toContain('TOKENS_FILE = "tokens.safetensors"');
});

test('compress --method quantise writes a folder that inspect, generate and verify read', async () => {
  const out = join(temporaryFolder(), 'packed');
  const { code, stdout } = await mobe('compress', TINY_MODEL, out, '--method', 'quantise', '--width', '8', '--json');
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ settings: { method: 'quantise', width: 8, format: 'hf' } });
  const inspected = JSON.parse((await mobe('inspect', out, '--json')).stdout);
  expect(JSON.stringify(inspected)).toContain('INT8 in groups of 64');
  const generated = await mobe('generate', out, '--prompt', prompt, '--max-new-tokens', '9');
  expect(generated.stdout).toBe(`${greedy_text.slice(0, 9)}\n`);
  expect((await mobe('verify', TINY_MODEL, out)).code).toBe(0);
});
