/** Files of torch.save with bytes changed, removed or repeated at random must give one of our errors, or tensors that lie in the file. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { TORCH_FILES } from '../../fixtures/paths.js';
import { memorySource } from '../../fixtures/torch-zip.js';
import { byteLength } from '../checkpoint/dtype.js';
import { MobeError } from '../errors.js';
import { readTensors } from './open-torch-file.js';

const MUTATIONS = 4000;
const FILES = ['model_layers_1_mlp_gate_proj_WAB.pth', 'views.pth', 'protocol-4.pth', 'zip64.pth'];

/** mulberry32; integers from 0 to `limit` − 1. */
function generator(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % limit;
  };
}

/** Values at the limits of fields. Random bytes rarely reach them. */
const EXTREMES = [0x00, 0x01, 0x28, 0x2e, 0x7f, 0x80, 0x85, 0xff];

/** The range of the pickle. It decides most, but is a small part of the file. */
function pickleRange(file: Buffer, name: string): [start: number, end: number] {
  const start = file.indexOf(Buffer.from([0x80, name.startsWith('protocol-4') ? 4 : 2]));
  return [start, file.indexOf('PK', start, 'latin1')];
}

/** Changes `original` at a random place from `start` to `end`. */
function mutate(original: Buffer, start: number, end: number, random: (limit: number) => number): Buffer {
  const file = Buffer.from(original);
  const at = start + random(end - start);
  const next = Math.min(file.length, at + 1 + random(8));
  switch (random(6)) {
    case 0:
      return file.subarray(0, at);
    case 1: // Removed, so that everything behind moves.
      return Buffer.concat([file.subarray(0, at), file.subarray(next)]);
    case 2: // Repeated.
      return Buffer.concat([file.subarray(0, next), file.subarray(at)]);
    case 3:
      return file.fill(EXTREMES[random(EXTREMES.length)] as number, at, next);
    case 4: // Copied from elsewhere.
      file.copy(file, at, random(file.length), file.length);
      return file;
    default:
      for (let count = random(3); count >= 0; count--) file[start + random(end - start)] = random(256);
      return file;
  }
}

test.each(FILES)('mutations of %s', async (name) => {
  const original = readFileSync(join(TORCH_FILES, name));
  const random = generator(name.length);
  let refused = 0;
  for (let i = 0; i < MUTATIONS; i++) {
    const [start, end] = i % 2 === 0 ? pickleRange(original, name) : [0, original.length];
    const file = mutate(original, start, end, random);
    try {
      for (const { dtype, shape, start, end } of await readTensors(memorySource(file, name))) {
        expect(end - start).toBe(byteLength(dtype, shape));
        expect(start).toBeGreaterThanOrEqual(0);
        expect(end).toBeLessThanOrEqual(file.length);
      }
    } catch (error) {
      if (!(error instanceof MobeError)) throw error;
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(MUTATIONS / 4);
  expect(refused).toBeLessThan(MUTATIONS);
});

test.each(FILES)('every truncation of %s is refused', async (name) => {
  const original = readFileSync(join(TORCH_FILES, name));
  for (let length = 0; length < original.length; length++) {
    await expect(readTensors(memorySource(original.subarray(0, length), name))).rejects.toThrow(MobeError);
  }
});

test.each(FILES)('every bit of the pickle of %s, flipped', async (name) => {
  const original = readFileSync(join(TORCH_FILES, name));
  const [start, end] = pickleRange(original, name);
  for (let bit = start * 8; bit < end * 8; bit++) {
    const file = Buffer.from(original);
    file[bit >> 3] = (file[bit >> 3] as number) ^ (1 << (bit & 7));
    const tensors = await readTensors(memorySource(file, name)).catch((error: unknown) => error);
    if (!Array.isArray(tensors)) expect(tensors).toBeInstanceOf(MobeError);
  }
});
