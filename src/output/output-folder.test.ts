import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openShard } from '../checkpoint/open-checkpoint.js';
import * as errors from '../errors.js';
import { LocalFiles } from '../sources/files.js';
import { layoutFile } from './layout.js';
import { checkOutside, OutputFolder, PARTIAL_FOLDER } from './output-folder.js';

const root = temporaryFolder();
const layout = layoutFile('model.safetensors', [
  { name: 'a', dtype: 'U8', shape: [4], bytes: 4 },
  { name: 'b', dtype: 'U8', shape: [2], bytes: 2 },
]);

test('chunks in any order make a whole file; nothing has its name before the commit', async () => {
  const folder = join(root, 'whole');
  const output = await OutputFolder.create(folder, { neededBytes: 1 });
  await output.reserve(layout);
  await output.write('b', 0, Uint8Array.of(5, 6));
  await output.write('a', 2, Uint8Array.of(3, 4));
  await output.writeText('config.json', '{}');
  await output.write('a', 0, Uint8Array.of(1, 2));
  expect(readdirSync(folder)).toEqual([PARTIAL_FOLDER]);
  await output.commit(['config.json']);
  expect(readdirSync(folder).sort()).toEqual(['config.json', 'model.safetensors']);
  const files = new LocalFiles();
  expect((await openShard(join(folder, 'model.safetensors'), files)).tensors).toHaveLength(2);
  await files.close();
  expect([...readFileSync(join(folder, 'model.safetensors')).subarray(-6)]).toEqual([1, 2, 3, 4, 5, 6]);
});

test('a tensor that was not written whole stops the commit', async () => {
  const folder = join(root, 'partial');
  const output = await OutputFolder.create(folder, { neededBytes: 1 });
  await output.reserve(layout);
  await output.write('a', 0, Uint8Array.of(1, 2, 3, 4));
  await expect(output.commit([])).rejects.toThrow(errors.IncompleteOutputError);
  await output.abandon();
  expect(existsSync(folder)).toBe(false);
});

test('writing beyond a tensor is refused', async () => {
  const output = await OutputFolder.create(join(root, 'beyond'), { neededBytes: 1 });
  await output.reserve(layout);
  await expect(output.write('b', 1, Uint8Array.of(1, 2))).rejects.toThrow(errors.WriteError);
  await expect(output.write('c', 0, Uint8Array.of(1))).rejects.toThrow(errors.WriteError);
  await output.abandon();
});

test('files of an earlier run go only when the new ones are whole', async () => {
  const folder = join(root, 'replaced');
  mkdirSync(folder);
  for (const file of ['config.json', 'old.safetensors']) writeFileSync(join(folder, file), 'old');
  const replaces = ['config.json', 'old.safetensors'];
  const failed = await OutputFolder.create(folder, { neededBytes: 1, replaces });
  await failed.writeText('config.json', 'new');
  await failed.abandon();
  expect(readFileSync(join(folder, 'config.json'), 'utf8')).toBe('old');
  const output = await OutputFolder.create(folder, { neededBytes: 1, replaces });
  await output.writeText('config.json', 'new');
  await output.commit(['config.json']);
  expect(readdirSync(folder)).toEqual(['config.json']);
  expect(readFileSync(join(folder, 'config.json'), 'utf8')).toBe('new');
});

test('the leftovers of a killed run are no obstacle', async () => {
  const folder = join(root, 'killed');
  mkdirSync(join(folder, PARTIAL_FOLDER), { recursive: true });
  writeFileSync(join(folder, PARTIAL_FOLDER, 'model.safetensors'), 'half');
  const output = await OutputFolder.create(folder, { neededBytes: 1 });
  await output.reserve(layout);
  await output.abandon();
});

test('a folder with anything else in it is refused', async () => {
  const folder = join(root, 'occupied');
  mkdirSync(folder);
  writeFileSync(join(folder, 'thesis.txt'), '');
  await expect(OutputFolder.create(folder, { neededBytes: 1 })).rejects.toThrow(errors.OutputNotEmptyError);
  await expect(OutputFolder.create(folder, { neededBytes: 1 })).rejects.toThrow('thesis.txt');
});

test('a disk that is too small is refused before anything is created', async () => {
  const folder = join(root, 'small-disk');
  await expect(OutputFolder.create(folder, { neededBytes: 1e18 })).rejects.toThrow(errors.DiskTooSmallError);
  expect(existsSync(folder)).toBe(false);
});

test('a folder that cannot be written is refused', async () => {
  writeFileSync(join(root, 'file'), '');
  // A file in the place of a folder is used, because permissions do not stop root.
  for (const folder of [join(root, 'file'), join(root, 'file', 'out')]) {
    await expect(OutputFolder.create(folder, { neededBytes: 1 })).rejects.toThrow(errors.OutputNotWritableError);
  }
});

test('the output may not be the input or lie inside it, whatever links say', async () => {
  const input = join(root, 'input');
  mkdirSync(input);
  symlinkSync(input, join(root, 'link'));
  for (const output of [input, join(input, 'out'), join(root, 'link', 'deep', 'out'), `${input}/../input`]) {
    await expect(checkOutside(output, [input])).rejects.toThrow(errors.OutputInsideInputError);
  }
  for (const output of [join(root, 'input-2'), root, join(root, 'other')]) await checkOutside(output, [input]);
});
