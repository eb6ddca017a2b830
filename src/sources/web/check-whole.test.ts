/** Files that are read from start to end are checked against their SHA-256. */
import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { DamagedDownloadError } from '../../errors.js';
import { checkWhole } from './check-whole.js';
import type { WebFile } from './web-place.js';

const content = Uint8Array.from({ length: 1000 }, (_, i) => i % 251);
const file: WebFile = {
  path: 'a',
  bytes: content.length,
  version: 0,
  sha256: createHash('sha256').update(content).digest('hex'),
};
const damaged = Uint8Array.from(content);
damaged[700] = 1;

/** Reads ranges of `from`. The later ones arrive first. */
async function read(from: Uint8Array, ranges: ReadonlyArray<readonly [number, number]>): Promise<void> {
  const checked = checkWhole(({ path }) => path);
  await Promise.all(
    ranges.map(async ([start, end], i) => {
      const target = new Uint8Array(end - start);
      await checked(file, start, target, async () => {
        await sleep(2 * (ranges.length - i));
        target.set(from.subarray(start, end));
      });
    }),
  );
}

const IN_ORDER: Array<[number, number]> = [
  [0, 8],
  [8, 300],
  [300, 800],
  [800, 1000],
];

test('reads in order, which may overlap and arrive in any order, are checked', async () => {
  for (const ranges of [
    IN_ORDER,
    [[0, 1000]] as const,
    [
      [0, 8],
      [500, 600],
      [4, 400],
      [400, 1000],
      [0, 9],
    ] as const,
  ]) {
    await read(content, ranges);
    await expect(read(damaged, ranges)).rejects.toThrow(DamagedDownloadError);
  }
});

test('a file that is not read whole in order is not checked', async () => {
  for (const ranges of [[[0, 999]], [...IN_ORDER].reverse(), [IN_ORDER[0], ...IN_ORDER.slice(2)]])
    await read(damaged, ranges as Array<[number, number]>);
});

test('after a failed read, the check is left out until the file is read from its start again', async () => {
  const checked = checkWhole(({ path }) => path);
  const failing = checked(file, 0, new Uint8Array(500), async () => {
    throw new Error('cut');
  });
  await expect(failing).rejects.toThrow('cut');
  await checked(file, 500, new Uint8Array(500), async () => {});
  await expect(checked(file, 0, new Uint8Array(1000), async () => {})).rejects.toThrow(DamagedDownloadError);
});
