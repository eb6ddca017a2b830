/** Shards leave the disk when all work on them is finished, and the work waits for a slow place. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { layoutFile } from '../output/layout.js';
import type { Output } from '../output/output.js';
import { OutputFolder, PARTIAL_FOLDER } from '../output/output-folder.js';
import type { Unit } from '../output/unfinished-run.js';
import type { Publication, Sink } from './sink.js';
import { uploadFolder } from './upload-folder.js';

const root = temporaryFolder();
const BYTES = 1000;
const NAMES = ['a', 'b', 'c', 'd', 'e', 'f'];
const layouts = NAMES.map((name) =>
  layoutFile(`${name}.safetensors`, [{ name, dtype: 'U8', shape: [BYTES], bytes: BYTES }]),
);
const copies = NAMES.map(
  (name): Unit => ({ id: name, parts: [{ tensor: name, offset: 0, bytes: BYTES }], noted: false }),
);
const run = { identity: 1, difference: () => undefined, changedSources: () => [] };

/** A place that takes a file only when it is told to. */
function slowSink() {
  const waiting: Array<() => void> = [];
  const taken: string[] = [];
  const published: Publication[] = [];
  const begun: Array<readonly string[]> = [];
  const discarded: Array<readonly string[]> = [];
  const sink: Sink = {
    list: async () => [],
    begin: async (replaces) => void begun.push(replaces),
    async send(file) {
      await new Promise<void>((resolve) => waiting.push(resolve));
      taken.push(file.file);
      return file;
    },
    held: async (files) => [...files],
    publish: async (result) => void published.push(result),
    discard: async (files) => void discarded.push(files),
    close: () => {},
  };
  const take = async (): Promise<void> => {
    while (waiting.length === 0) await sleep(1);
    waiting.shift()?.();
  };
  return { sink, taken, published, begun, discarded, take };
}

async function open(
  folder: string,
  sink: Sink,
  units: readonly Unit[],
  onRest?: (bytes: number) => void,
  replaces: readonly string[] = [],
) {
  const local = await OutputFolder.create(folder, { neededBytes: 0, run });
  const output = uploadFolder(local, sink, { replaces, stop: new AbortController(), ...(onRest && { onRest }) });
  const finished = await output.resume?.(layouts, units, () => {});
  for (const layout of layouts) await output.reserve(layout);
  return { output, finished };
}

const here = (folder: string): string[] =>
  NAMES.filter((name) => existsSync(join(folder, PARTIAL_FOLDER, `${name}.safetensors`)));
const write = (output: Output, name: string): Promise<void> => output.write(name, 0, new Uint8Array(BYTES));

test('at most three complete shards are here, and each is removed when it is there', async () => {
  const folder = join(root, 'slow');
  const { sink, taken, published, take } = slowSink();
  const rest: number[] = [];
  const { output } = await open(folder, sink, copies, (bytes) => rest.push(bytes));
  for (const name of ['a', 'b']) await write(output, name);
  let passed = false;
  const third = write(output, 'c').then(() => {
    passed = true;
  });
  await sleep(50);
  expect(passed).toBe(false);
  await take();
  await third;
  expect(taken).toEqual(['a.safetensors']);
  expect(here(folder)).toEqual(['b', 'c', 'd', 'e', 'f']);
  for (const name of ['d', 'e', 'f']) await Promise.all([write(output, name), take()]);
  await output.writeText('config.json', '{}');
  const done = output.commit(['config.json']);
  for (let i = 0; i < 2; i++) await take();
  await done;
  expect(rest).toEqual([2 * (layouts[0]?.bytes as number)]);
  expect(published[0]?.sent.map(({ file }) => file)).toEqual(layouts.map(({ file }) => file));
  expect(published[0]?.small.map(([{ file }]) => file)).toEqual(['config.json']);
  expect(existsSync(folder)).toBe(false);
});

test('a shard stays while a group that writes into it is not finished, and a torn one is made again', async () => {
  const folder = join(root, 'torn');
  const { sink, taken, take } = slowSink();
  const parts = (...names: string[]) => names.map((tensor) => ({ tensor, offset: 0, bytes: BYTES }));
  const group: Unit = { id: 'group', parts: parts('a', 'b'), noted: true };
  const other: Unit = { id: 'other', parts: parts('b', 'c'), noted: true };
  const units = [group, other, ...copies.slice(3)];
  const first = await open(folder, sink, units);
  for (const name of ['a', 'b', 'c']) await write(first.output, name);
  await first.output.finish?.(group, 'note');
  await take();
  while (here(folder).includes('a')) await sleep(1);
  await first.output.abandon(true);
  expect(taken).toEqual(['a.safetensors']); // "b" has a part of the other group
  expect(readFileSync(join(folder, PARTIAL_FOLDER, '.journal'), 'utf8')).toContain('"sent":{"file":"a.safetensors"');

  const again = await open(folder, sink, units);
  expect([...(again.finished ?? [])]).toEqual([['group', 'note']]);
  expect(here(folder)).toEqual(['b', 'c', 'd', 'e', 'f']);
  await again.output.abandon(true);

  // With a part of the work on it undone, a shard that is away is of no use.
  const split = await open(folder, sink, [
    { ...group, parts: parts('a') },
    { id: 'new', parts: parts('a'), noted: true },
  ]);
  expect([...(split.finished ?? [])]).toEqual([]);
  expect(here(folder)).toContain('a');
  await split.output.abandon(false);
  expect(existsSync(folder)).toBe(false);
});

test('files of an earlier result are not removed for those of this one, nor when nothing was sent', async () => {
  const folder = join(root, 'replaced');
  const { sink, published, begun, discarded, take } = slowSink();
  const old = ['config.json', ...layouts.map(({ file }) => file)];
  const nothing = await open(folder, sink, copies, undefined, old);
  await nothing.output.abandon(false);
  expect([begun, discarded]).toEqual([[], [[]]]);

  const first = await open(folder, sink, copies, undefined, old);
  for (const name of NAMES) await Promise.all([write(first.output, name), take()]);
  while (here(folder).length > 0) await sleep(1);
  await first.output.abandon(true);
  expect(begun).toEqual([old]);
  const again = await open(folder, sink, copies);
  await again.output.commit([]);
  expect(begun).toEqual([old, ['config.json']]);
  expect(published[0]?.sent).toHaveLength(NAMES.length);
});
