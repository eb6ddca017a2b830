/** Index, headers and folder may disagree. The model is the one that transformers and vLLM would load. */
import { cpSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { shardOf } from '../../fixtures/fuzz/checkpoint-target.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import * as errors from '../errors.js';
import { INDEX_FILE, openCheckpoint, SINGLE_FILE } from './open-checkpoint.js';

const root = temporaryFolder();
let made = 0;

/** A shard whose tensors are of one byte each. */
function shard(tensors: Record<string, number>): Uint8Array {
  const entries = Object.keys(tensors).map((name, i) => [name, { dtype: 'U8', shape: [1], data_offsets: [i, i + 1] }]);
  return shardOf(JSON.stringify(Object.fromEntries(entries)), Uint8Array.from(Object.values(tensors)));
}

const index = (map: Record<string, string>, rest = ''): string => `{"weight_map": ${JSON.stringify(map)}${rest}}`;

/** Writes a folder. A value that begins with "->" is a link. */
function write(files: Record<string, string | Uint8Array>): string {
  const folder = join(root, String(made++));
  for (const [name, content] of Object.entries({ 'config.json': '{}', ...files })) {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    if (typeof content === 'string' && content.startsWith('->')) symlinkSync(content.slice(2), join(folder, name));
    else writeFileSync(join(folder, name), content);
  }
  return folder;
}

/** Opens a folder. Returns the byte of each tensor, the names of the shards, and the notes. */
async function open(files: Record<string, string | Uint8Array>) {
  const folder = write(files);
  const { tensors, shards, notes } = await openCheckpoint(folder);
  const held = shards.flatMap((it) => it.tensors);
  expect(new Set(held)).toEqual(new Set(tensors.values()));
  const bytes = held.map(({ name, file, start }) => [name, readFileSync(file)[start]] as const);
  return { bytes: Object.fromEntries(bytes), files: shards.map(({ path }) => path.slice(folder.length + 1)), notes };
}

const [A, B] = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'];
const two = { [A]: shard({ a: 1 }), [B]: shard({ b: 2 }) };
const both = index({ a: A, b: B });
const asIndexed = { a: 1, b: 2 };

describe('the index says which files are the model:', () => {
  test.each([
    'mtp.safetensors',
    'consolidated.safetensors',
    'adapter_model.safetensors',
    'model.fp16-00001-of-00001.safetensors',
    'model-00001-of-00009.safetensors',
  ])('%s is none of them', async (other) => {
    const { bytes, notes } = await open({ ...two, [INDEX_FILE]: both, [other]: shard({ c: 3 }) });
    expect(bytes).toEqual(asIndexed);
    expect(notes).toEqual([`left aside: 1 safetensors file that is not part of the model (${other}).`]);
  });

  test('in subfolders too, whatever spells their path', async () => {
    const weights = { 'w/1.safetensors': shard({ a: 1 }), 'w/x/2.safetensors': shard({ b: 2 }) };
    const map = index({ a: './w/1.safetensors', b: 'w/x/2.safetensors' });
    const { bytes, files, notes } = await open({ ...weights, [INDEX_FILE]: map });
    expect(bytes).toEqual(asIndexed);
    expect(files).toEqual(['w/1.safetensors', 'w/x/2.safetensors']);
    expect(notes).toEqual([]);
  });

  test.each(['w/../../secret', 'w//x', '/etc/passwd', 'w\\x'])('%j leads elsewhere: refused', async (file) => {
    await expect(open({ ...two, [INDEX_FILE]: index({ a: file }) })).rejects.toThrow(errors.UnsafePathError);
  });

  test('its shards are links into a hub cache', async () => {
    const folder = write({ '../blobs/1': shard({ a: 1 }), '../blobs/2': shard({ b: 2 }), '../blobs/3': both });
    for (const [name, blob] of [
      [A, 1],
      [B, 2],
      [INDEX_FILE, 3],
    ] as const)
      symlinkSync(`../blobs/${blob}`, join(folder, name));
    const { tensors, notes } = await openCheckpoint(folder);
    expect([...tensors.keys()]).toEqual(['a', 'b']);
    expect(notes).toEqual([]);
  });

  test("a byte order mark, a bare NaN and a key twice are Python's", async () => {
    const map = `\ufeff{"weight_map": {"z": "gone.safetensors"}, ${both.slice(1, -1)}, "metadata": {"total_size": NaN}}`;
    expect((await open({ ...two, [INDEX_FILE]: map })).bytes).toEqual(asIndexed);
  });
});

describe('headers fill in what the index omits:', () => {
  test('a tensor that it does not list', async () => {
    const { bytes, notes } = await open({ [A]: shard({ a: 1, c: 3 }), [B]: two[B] as Uint8Array, [INDEX_FILE]: both });
    expect(bytes).toEqual({ ...asIndexed, c: 3 });
    expect(notes).toEqual(['the index does not list 1 tensor that its shards hold: read with the rest (c).']);
  });

  test('a tensor that lies in another shard than it says', async () => {
    const { bytes, notes } = await open({
      [A]: shard({ a: 1, b: 2 }),
      [B]: shard({ c: 3 }),
      [INDEX_FILE]: index({ a: A, b: B, c: B }),
    });
    expect(bytes).toEqual({ ...asIndexed, c: 3 });
    expect(notes).toEqual([
      'the index places 1 tensor in a shard that does not hold them: they are read from the one that does (b).',
    ]);
  });

  test('a tensor that is nowhere, as rotary buffers that a merge dropped, is told', async () => {
    const { bytes, notes } = await open({ ...two, [INDEX_FILE]: index({ a: A, b: B, ghost: B }) });
    expect(bytes).toEqual(asIndexed);
    expect(notes).toEqual(['the index names 1 tensor that no shard holds: they are not part of the model (ghost).']);
  });

  test.each([
    ['the first', { a: A, b: B }, 1],
    ['the second', { a: B, b: B, c: A }, 9],
    ['neither: the last counts, as in transformers', { b: B, c: A }, 9],
  ])('of two of a name, the index names %s', async (_, map: Record<string, string>, expected) => {
    const files = { [A]: shard({ a: 1, c: 3 }), [B]: shard({ a: 9, b: 2 }), [INDEX_FILE]: index(map) };
    const { bytes, notes } = await open(files);
    expect(bytes.a).toBe(expected);
    expect(notes.join()).toContain('several shards hold 1 tensor');
  });

  test('a name that the index has twice is where the last says', async () => {
    const files = { [A]: shard({ a: 1, c: 3 }), [B]: shard({ a: 9, b: 2 }) };
    const map = (order: string[]) =>
      `{"weight_map": {${order.map((it) => `"a": "${it}"`).join()}, "b": "${B}", "c": "${A}"}}`;
    expect((await open({ ...files, [INDEX_FILE]: map([A, B]) })).bytes.a).toBe(9);
    expect((await open({ ...files, [INDEX_FILE]: map([B, A]) })).bytes.a).toBe(1);
  });
});

describe('a single file beside an index:', () => {
  const single = { [SINGLE_FILE]: shard({ a: 5, b: 6 }) };
  test('it is the model where the shards are gone', async () => {
    const { bytes, files, notes } = await open({ ...single, [INDEX_FILE]: both });
    expect([bytes, files]).toEqual([{ a: 5, b: 6 }, [SINGLE_FILE]]);
    expect(notes).toEqual([
      `${SINGLE_FILE} is read and ${INDEX_FILE} is left aside: 2 shards that it names are not there.`,
    ]);
  });

  test('it is where it holds all, as in transformers, and where the index is of another conversion', async () => {
    expect((await open({ ...single, ...two, [INDEX_FILE]: both })).files).toEqual([SINGLE_FILE]);
    expect((await open({ ...single, [INDEX_FILE]: index({ other: A }) })).files).toEqual([SINGLE_FILE]);
    expect((await open({ ...single, [INDEX_FILE]: index({ a: SINGLE_FILE }) })).bytes).toEqual({ a: 5, b: 6 });
  });

  test('it is left aside where it is a part of what the shards hold', async () => {
    const { files, notes } = await open({ [SINGLE_FILE]: shard({ a: 5 }), ...two, [INDEX_FILE]: both });
    expect(files).toEqual([A, B]);
    expect(notes).toEqual([`left aside: 1 safetensors file that is not part of the model (${SINGLE_FILE}).`]);
  });
});

describe('without an index:', () => {
  test('the headers of numbered shards are one', async () => {
    const { bytes, notes } = await open({ ...two, 'mtp.safetensors': shard({ c: 3 }) });
    expect(bytes).toEqual(asIndexed);
    expect(notes).toEqual([
      `there is no ${INDEX_FILE}: the headers of 2 shards are read instead.`,
      'left aside: 1 safetensors file that is not part of the model (mtp.safetensors).',
    ]);
  });

  test('variants and other sets are no shards of it', async () => {
    const variant = {
      'model.fp16-00001-of-00001.safetensors': shard({ a: 7 }),
      'consolidated-1-of-2.safetensors': shard({ a: 8 }),
    };
    expect((await open({ ...two, ...variant })).bytes).toEqual(asIndexed);
  });

  test('shards of any name are the model together, adapters are not', async () => {
    const files = {
      'x.safetensors': shard({ a: 1 }),
      'y.safetensors': shard({ b: 2 }),
      'adapter_model.safetensors': shard({ a: 7 }),
    };
    expect((await open(files)).bytes).toEqual(asIndexed);
  });

  test('numbers may begin with 0 and have any number of digits', async () => {
    expect(
      (await open({ 'model-0-of-2.safetensors': shard({ a: 1 }), 'model-1-of-2.safetensors': shard({ b: 2 }) })).bytes,
    ).toEqual(asIndexed);
  });

  test('two files with the same tensor, or two sets: refused, naming them', async () => {
    const same = open({ 'x.safetensors': shard({ a: 1 }), 'y.safetensors': shard({ a: 2 }) });
    await expect(same).rejects.toThrow(errors.AmbiguousTensorError);
    const sets = open({ ...two, 'model-00001-of-00001.safetensors': shard({ a: 1 }) });
    await expect(sets).rejects.toThrow(errors.SeveralModelsError);
    await expect(sets).rejects.toThrow('model-…-of-00001');
  });
});

describe('what bytes are missing is said as it is:', () => {
  const cases: Array<[string, Record<string, string | Uint8Array>, string, string]> = [
    ['a shard that the index names', { [A]: two[A] as Uint8Array, [INDEX_FILE]: both }, B, 'places 1 tensor in it'],
    ['a shard of a numbered set', { [A]: two[A] as Uint8Array }, B, 'one of 2'],
    [
      'a link whose download was interrupted',
      { [A]: two[A] as Uint8Array, [B]: '->../blobs/x', [INDEX_FILE]: both },
      B,
      'link to a file that is not there',
    ],
    [
      'the same without an index',
      { [A]: two[A] as Uint8Array, [B]: '->../blobs/x' },
      B,
      'link to a file that is not there',
    ],
    ['the only file, a link', { [SINGLE_FILE]: '->../blobs/x' }, SINGLE_FILE, 'link to a file that is not there'],
    ['the index, a link', { ...two, [INDEX_FILE]: '->../blobs/x' }, INDEX_FILE, 'link to a file that is not there'],
    [
      'a name in other letters',
      { ...two, [INDEX_FILE]: index({ a: A, b: B.replace('model', 'Model') }) },
      B.replace('model', 'Model'),
      `only ${B} is there`,
    ],
  ];
  test.each(cases)('%s', async (_, files, file, why) => {
    await expect(open(files)).rejects.toThrow(errors.MissingShardError);
    await expect(open(files)).rejects.toThrow(file);
    await expect(open(files)).rejects.toThrow(why);
  });

  test('config.json, a link to nothing', async () => {
    const folder = write(two);
    rmSync(join(folder, 'config.json'));
    symlinkSync('../blobs/x', join(folder, 'config.json'));
    await expect(openCheckpoint(folder)).rejects.toThrow(errors.UnreadableFileError);
  });
});

const POINTER = `version https://git-lfs.github.com/spec/v1\noid sha256:${'0'.repeat(64)}\nsize 12345\n`;

test.each([
  ['a shard', { [A]: POINTER, [INDEX_FILE]: both }, A],
  ['the index', { [INDEX_FILE]: POINTER }, INDEX_FILE],
  ['the config', { 'config.json': POINTER }, 'config.json'],
])('%s that is a git-lfs pointer is called that', async (_, files, file) => {
  const run = open({ ...two, ...(files as Record<string, string>) });
  await expect(run).rejects.toThrow(errors.LfsPointerError);
  await expect(run).rejects.toThrow(file);
  await expect(run).rejects.toThrow('git lfs pull');
  await expect(run).rejects.not.toThrow('ownload');
});

test('the trained model opens as before, whichever way it is named', async () => {
  const folder = join(root, 'trained');
  cpSync(TINY_MODEL, folder, { recursive: true });
  const before = await openCheckpoint(folder);
  expect(before.notes).toEqual([]);
  renameSync(join(folder, INDEX_FILE), join(folder, 'old.json'));
  expect(existsSync(join(folder, INDEX_FILE))).toBe(false);
  const after = await openCheckpoint(folder);
  expect([...after.tensors]).toEqual([...before.tensors]);
});
