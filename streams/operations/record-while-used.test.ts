import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { beforeAll, expect, test } from 'vitest';
import { EVALUATION_TEXT, TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openRecord } from '../../src/calibration/open-record.js';
import { type CalibrationRecord, layerFile } from '../../src/calibration/record.js';
import { DiskTooSmallError, InterruptedError, RecordLayerError, UnfinishedRunError } from '../../src/errors.js';
import { nodeFileSystem } from '../../src/file-system.js';
import { type CalibrationProgress, calibrate } from './calibrate.js';
import { recordWhileUsed } from './record-while-used.js';

const root = temporaryFolder();
const at = (name: string) => join(root, name);
const ONE = { text: [EVALUATION_TEXT], threads: 1, sequenceLength: 16, tokens: 60 };

beforeAll(async () => {
  await calibrate(TINY_MODEL, at('whole'), ONE);
});

const fileOf = (folder: string, layer: number): Buffer => readFileSync(join(folder, layerFile(layer)));
const layersIn = (folder: string): string[] => readdirSync(folder).filter((name) => name.startsWith('layer-'));

/** Takes a layer, compares its file with that of the whole record, and releases it. */
async function use(record: CalibrationRecord, number: number): Promise<void> {
  const layer = await record.layer(number);
  expect(layer.name).toBe(join(record.name, layerFile(number)));
  expect(fileOf(record.name, number)).toEqual(fileOf(at('whole'), number));
  await record.release(number);
}

test('has the layers of a whole record, one after another, and few on disk', async () => {
  const ran: number[] = [];
  const onLayer = ({ layer }: CalibrationProgress): number => ran.push(layer);
  const record = await recordWhileUsed(TINY_MODEL, ONE, at('used'), { onLayer });
  const whole = await openRecord(at('whole'));
  expect(record.facts).toEqual(whole.facts);
  expect(await record.tokens()).toEqual(await whole.tokens());
  await whole.close();
  expect(record.plan.recordBytes).toBeLessThan(0.6 * 4 * fileOf(at('whole'), 0).length);
  expect(ran).toEqual([]);

  const first = await record.layer(0);
  expect(await record.layer(0)).toBe(first);
  await record.layer(1);
  expect(ran).toEqual([0, 1]);
  const third = record.layer(2);
  await delay(100);
  expect(ran).toEqual([0, 1]);
  expect(layersIn(at('used'))).toHaveLength(2);
  await record.release(0);
  await third;
  expect(layersIn(at('used'))).toEqual([layerFile(1), layerFile(2)]);
  for (const layer of [1, 2, 3]) await use(record, layer);
  expect(ran).toEqual([0, 1, 2, 3]);
  expect(layersIn(at('used'))).toEqual([]);
  await record.close();
});

test('skips layers that nobody asks for, and runs again for an earlier one', async () => {
  const ran: number[] = [];
  const onLayer = ({ layer }: CalibrationProgress): number => ran.push(layer);
  const record = await recordWhileUsed(TINY_MODEL, ONE, at('skipping'), { onLayer });
  await use(record, 2);
  await use(record, 0);
  await use(record, 3);
  expect(ran).toEqual([0, 1, 2, 0, 1, 2, 3]);
  await expect(record.layer(4)).rejects.toThrow(RecordLayerError);
  await record.close();
});

test('continues after an interruption, with the layers that were not released', async () => {
  const stop = new AbortController();
  const onLayer = ({ layer }: CalibrationProgress): void => {
    if (layer === 2) stop.abort();
  };
  const before = await recordWhileUsed(TINY_MODEL, ONE, at('again'), { onLayer, signal: stop.signal });
  await before.layer(0);
  await before.layer(1);
  await before.release(0);
  await before.layer(2); // its last sequences were done when the run was stopped
  const next = before.layer(3);
  await expect(next).rejects.toThrow(InterruptedError);
  await before.close();

  const ran: number[] = [];
  const after = await recordWhileUsed(TINY_MODEL, ONE, at('again'), { onLayer: ({ layer }) => ran.push(layer) });
  for (const layer of [1, 2, 3]) await use(after, layer);
  expect(ran).toEqual([3]);
  await after.close();
  await expect(recordWhileUsed(TINY_MODEL, { ...ONE, seed: 1 }, at('again'))).rejects.toThrow(UnfinishedRunError);
});

test('ends calls that wait when it is closed', async () => {
  const record = await recordWhileUsed(TINY_MODEL, ONE, at('closed'));
  for (const layer of [0, 1]) await record.layer(layer);
  const waiting = record.layer(2);
  const [result] = await Promise.allSettled([waiting, delay(50).then(() => record.close())]);
  expect(result).toMatchObject({ status: 'rejected', reason: expect.any(InterruptedError) });
});

test('needs its disk before it begins', async () => {
  const fileSystem = { ...nodeFileSystem, freeBytes: async () => 50_000 };
  await expect(recordWhileUsed(TINY_MODEL, ONE, at('small'), { fileSystem })).rejects.toThrow(DiskTooSmallError);
});
