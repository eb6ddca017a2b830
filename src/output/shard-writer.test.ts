import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { interceptedFileSystem } from '../../fixtures/intercepted-file-system.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { IncompleteOutputError } from '../errors.js';
import { layoutFile } from './layout.js';
import { ShardWriter } from './shard-writer.js';

const folder = temporaryFolder();
const SIZES = [3, 40_000, 0, 1, 20_000, 31_999, 32_768, 7, 100_000, 5, 5, 5];
const layout = layoutFile(
  'shard',
  SIZES.map((bytes, i) => ({ name: `t${i}`, dtype: 'U8', shape: [bytes], bytes })),
);
const whole = Uint8Array.from({ length: SIZES.reduce((sum, size) => sum + size, 0) }, (_, i) => i % 251);
const dataOf = (tensor: number): Uint8Array => {
  const start = SIZES.slice(0, tensor).reduce((sum, size) => sum + size, 0);
  return whole.slice(start, start + (SIZES[tensor] as number));
};

test('a sync waits for what was gathered and is being given away', async () => {
  let giving = false;
  let given = false;
  const fs = interceptedFileSystem(async ({ operation }) => {
    if (operation === 'write' && giving) {
      giving = false; // only the first write is slow
      await sleep(100);
      given = true;
    }
    return undefined;
  });
  const sizes = [20_000, 20_000];
  const small = layoutFile(
    'small',
    sizes.map((bytes, i) => ({ name: `t${i}`, dtype: 'U8', shape: [bytes], bytes })),
  );
  const writer = await ShardWriter.create(join(folder, 'given'), small, fs);
  giving = true;
  await writer.write('t0', 0, new Uint8Array(10));
  const pushing = writer.write('t1', 0, new Uint8Array(10)); // it does not follow the gathered part, so that one is written
  await writer.sync();
  expect(given).toBe(true);
  await pushing;
  await writer.abandon();
});

test.each([
  ['in order', SIZES.map((_, i) => i)],
  ['backwards', SIZES.map((_, i) => SIZES.length - 1 - i)],
  ['with jumps', SIZES.map((_, i) => (i * 5) % SIZES.length)],
])('small and large tensors, %s, all begun at once: the file is the same', async (name, order) => {
  const path = join(folder, name);
  const writer = await ShardWriter.create(path, layout);
  await Promise.all(
    order.map((tensor) => {
      const data = dataOf(tensor);
      const written = writer.write(`t${tensor}`, 0, data);
      return written.then(() => data.fill(255)); // the caller reuses its memory
    }),
  );
  await writer.finish();
  const file = readFileSync(path);
  expect(Buffer.compare(file.subarray(0, layout.header.byteLength), layout.header)).toBe(0);
  expect(Buffer.compare(file.subarray(layout.header.byteLength), whole)).toBe(0);
});

test('a small tensor that was not written is missed', async () => {
  const writer = await ShardWriter.create(join(folder, 'incomplete'), layout);
  for (let tensor = 0; tensor < SIZES.length - 1; tensor++) await writer.write(`t${tensor}`, 0, dataOf(tensor));
  await expect(writer.finish()).rejects.toThrow(IncompleteOutputError);
  await writer.abandon();
});
