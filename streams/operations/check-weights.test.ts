import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { generateFamily } from '../../fixtures/generate-family.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import type { TensorInfo } from '../../src/checkpoint/header.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import type { Progress } from '../run-options.js';
import { checkWeights } from './check-weights.js';

const root = temporaryFolder();

test('a sound checkpoint has no bad tensor, and every byte of it was read', async () => {
  const { tensors } = await openCheckpoint(TINY_MODEL);
  const seen: Progress[] = [];
  const check = await checkWeights(TINY_MODEL, { onProgress: (it) => seen.push(it) });
  const sizes = [...tensors.values()].map(({ start, end }) => end - start);
  const bytes = sizes.reduce((a, b) => a + b, 0);
  expect(check).toEqual({ tensors: tensors.size, weights: bytes / 2, bad: [] });
  expect(seen.at(-1)).toEqual({ kind: 'bytes', bytes });
});

test('all bad tensors are found: in experts, elsewhere, and by the scales of quantised ones', async () => {
  const folder = join(root, 'bad');
  await generateFamily(folder, 'deepseek_v3', { quantised: 'fp8', sizes: { layers: 2 } });
  const { tensors } = await openCheckpoint(folder);
  const damage = (name: string, offset: number, bytes: Uint8Array): void => {
    const { file, start } = tensors.get(name) as TensorInfo;
    const content = readFileSync(file);
    content.set(bytes, start + offset);
    writeFileSync(file, content);
  };
  const expert = 'model.layers.1.mlp.experts.3.up_proj.weight';
  const norm = [...tensors.keys()].find((name) => name.endsWith('input_layernorm.weight')) as string;
  damage(expert, 5, Uint8Array.of(0x7f, 0xff)); // two NaNs of E4M3
  damage(norm, 0, Uint8Array.of(0x80, 0x7f)); // infinity of bf16
  const scaled = 'model.layers.1.mlp.experts.4.down_proj.weight';
  damage(`${scaled}_scale_inv`, 0, new Uint8Array(Float32Array.of(Number.NaN).buffer));
  const { bad } = await checkWeights(folder);
  expect(bad.map(({ tensor }) => tensor).sort()).toEqual([expert, norm, scaled].sort());
  expect(bad.find(({ tensor }) => tensor === expert)?.nonFinite).toBe(2);
  expect(bad.find(({ tensor }) => tensor === expert)?.file).toBe(tensors.get(expert)?.file);
});

test('it stops when asked to', async () => {
  await expect(checkWeights(TINY_MODEL, { signal: AbortSignal.abort() })).rejects.toThrow('nterrupted');
});
