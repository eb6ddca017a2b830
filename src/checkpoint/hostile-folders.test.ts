/** Folders from strangers: no name may lead out of the folder, and no file may take more memory or time than its size allows. */
import { existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { crc32 } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { shardOf } from '../../fixtures/fuzz/checkpoint-target.js';
import { generateFamily } from '../../fixtures/generate-family.js';
import { memoryFolder } from '../../fixtures/memory-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { compress } from '../../streams/operations/compress.js';
import { fitFactors } from '../../streams/operations/fit.js';
import { examineOutput, readReport } from '../conversion/existing-output.js';
import { findNativeGroups } from '../conversion/native-groups.js';
import {
  InvalidJsonError,
  MissingExpertError,
  SizeMismatchError,
  UnequalExpertError,
  UnsafePathError,
} from '../errors.js';
import { detectModel } from '../models/detect.js';
import { editConfig } from '../models/native.js';
import { JOURNAL_FILE, PARTIAL_FOLDER } from '../output/journal.js';
import { OutputFolder } from '../output/output-folder.js';
import { LocalFiles } from '../sources/files.js';
import { byteLength } from './dtype.js';
import { openCheckpoint } from './open-checkpoint.js';
import { isPlainPath } from './plain-path.js';
import { listSideFiles } from './side-files.js';

const root = temporaryFolder();
const at = (...path: string[]): string => join(root, ...path);
const put = (path: string, content: string | Uint8Array): void => {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
};

describe('paths', () => {
  test.each(['a', 'a/b.py', '.hidden', 'a..b', '...', '__proto__', 'ä/ü', 'a b'])('%j stays in its folder', (path) =>
    expect(isPlainPath(path)).toBe(true),
  );
  test.each([
    '',
    '.',
    '..',
    '/etc/passwd',
    '../a',
    'a/../b',
    'a/..',
    './a',
    'a//b',
    'a/',
    'a\\b',
    '..\\a',
    'a\0',
    'C:x',
  ])('%j is refused', (path) => expect(isPlainPath(path)).toBe(false));

  test('the output folder refuses a name that leads out of it', async () => {
    const output = await OutputFolder.create(at('named'), { neededBytes: 1 });
    await expect(output.writeText('../escaped', 'x')).rejects.toThrow(UnsafePathError);
    await expect(output.writeFile('a/../../escaped', 1, (async function* () {})())).rejects.toThrow(UnsafePathError);
    const layout = { file: '/tmp/escaped', tensors: [], header: new Uint8Array(8), bytes: 8 };
    await expect(output.reserve(layout)).rejects.toThrow(UnsafePathError);
    await output.abandon();
    expect(existsSync(at('escaped'))).toBe(false);
  });

  test.each(['../escaped', '/escaped', 'a\\..\\b'])(
    'a side file called %j is refused before anything is done',
    async (path) => {
      const { files } = memoryFolder(new Map([[path, new Uint8Array(1)]]));
      await expect(listSideFiles({ folder: '/memory', files })).rejects.toThrow(UnsafePathError);
    },
  );

  test.each(['.journal', '.lock', 'a/.b'])('the output folder refuses %j, which is hidden', async (file) => {
    const output = await OutputFolder.create(at('hidden'), { neededBytes: 1 });
    await expect(output.writeText(file, 'x')).rejects.toThrow(UnsafePathError);
    await output.abandon();
  });

  test('side files called like what a run keeps for itself arrive as they are', async () => {
    await generateFamily(at('namesakes', 'in'), 'qwen3_moe');
    const names = ['journal', 'journal.new', 'lock', 'model.state'];
    for (const name of names) put(at('namesakes', 'in', name), `the ${name}`);
    await compress(at('namesakes', 'in'), at('namesakes', 'out'), { bases: 1, steps: 1 });
    for (const name of names) expect(readFileSync(at('namesakes', 'out', name), 'utf8')).toBe(`the ${name}`);
  });

  test.each([false, true])(
    'a journal with renames of elsewhere moves and removes nothing (force: %s)',
    async (force) => {
      for (const commit of [
        { files: [], last: [], replaces: ['../victim'] },
        { files: [], last: [], replaces: ['..'] },
        { files: ['../victim'], last: [], replaces: [] },
        { files: [3], last: [], replaces: [] },
      ]) {
        const folder = at('renames', 'in');
        put(at('renames', 'victim'), 'precious');
        const lines = [null, { commit }].map((it) => JSON.stringify(it));
        const sealed = lines.map((json) => `${crc32(json).toString(16).padStart(8, '0')} ${json}\n`).join('');
        put(join(folder, PARTIAL_FOLDER, JOURNAL_FILE), sealed);
        expect(await OutputFolder.finishCommit(folder, { force })).toEqual([]);
        const output = await OutputFolder.create(folder, { neededBytes: 1, force });
        await output.writeText('config.json', '{}');
        await output.commit([]);
        expect(readFileSync(at('renames', 'victim'), 'utf8')).toBe('precious');
        rmSync(folder, { recursive: true });
      }
    },
  );

  test.each(['..', '.', '../victim', '/', ''])('a record that claims %j gets nothing removed', async (claimed) => {
    const folder = at(`claims-${encodeURIComponent(claimed)}`, 'out');
    put(join(folder, '..', 'victim'), 'precious');
    put(join(folder, 'config.json'), '{}');
    const record = { version: 1, kind: 'compress', sourceFingerprint: '', settings: {}, files: [claimed], groups: [] };
    put(join(folder, 'mobe.json'), JSON.stringify(record));
    const existing = await examineOutput(folder, { kind: 'compress', sourceFingerprint: '', settings: {} }, true);
    expect(existing).toEqual({ replaces: ['config.json', 'mobe.json'] });
  });

  test('a record may name only what is there', async () => {
    put(at('names', 'mine.txt'), '');
    const record = {
      version: 1,
      kind: 'compress',
      sourceFingerprint: '',
      settings: {},
      files: ['gone', 'mine.txt'],
      groups: [],
      parametersBefore: 0,
      parametersAfter: 0,
      bytesBefore: 0,
      bytesAfter: 0,
      peakRssBytes: 0,
      seconds: 0,
    };
    put(at('names', 'mobe.json'), JSON.stringify(record));
    const existing = await examineOutput(at('names'), { kind: 'compress', sourceFingerprint: '', settings: {} }, true);
    expect(existing).toEqual({ replaces: ['mine.txt'] });
  });
});

describe('links', () => {
  test('files behind links are read, as download caches have them; links to folders are not entered', async () => {
    put(at('blobs', 'abc'), '{}');
    mkdirSync(at('linked'));
    symlinkSync(at('blobs', 'abc'), at('linked', 'config.json'));
    symlinkSync('.', at('linked', 'a'));
    symlinkSync('.', at('linked', 'b')); // with a: 2^40 paths
    symlinkSync('/dev/zero', at('linked', 'zero'));
    symlinkSync('nowhere', at('linked', 'dangling'));
    expect(await new LocalFiles().list(at('linked'))).toMatchObject([{ path: 'config.json', bytes: 2 }]);
  });

  test('a link in the place of a record, or of the partial folder, is replaced and not written through', async () => {
    await generateFamily(at('model'), 'qwen3_moe', { sizes: { layers: 1, experts: 4, rows: 8, cols: 16 } });
    put(at('victim', 'file'), 'precious');
    mkdirSync(at('factors'));
    symlinkSync(at('victim', 'file'), at('factors', 'mobe.json'));
    symlinkSync(at('victim'), at('factors', '.mobe-partial'));
    await fitFactors(at('model'), at('factors'), { bases: 1, steps: 1, threads: 1 });
    mkdirSync(at('out'));
    symlinkSync(at('victim'), at('out', '.mobe-partial'));
    await compress(at('model'), at('out'), { bases: 1, steps: 1, threads: 1 });
    expect(readFileSync(at('victim', 'file'), 'utf8')).toBe('precious');
    expect((await readReport(at('factors')))?.kind).toBe('fit');
    expect((await readReport(at('out')))?.kind).toBe('compress');
  });
});

describe('sizes are not taken on trust:', () => {
  const open = (files: Record<string, string | Uint8Array>) =>
    openCheckpoint(memoryFolder(new Map(Object.entries(files).map(([name, it]) => [name, Buffer.from(it)]))));
  const tensor = (dtype: string, shape: readonly number[], start: number, end: number) => ({
    dtype,
    shape,
    data_offsets: [start, end],
  });
  const shard = (tensors: Record<string, unknown>, bytes = 0) =>
    shardOf(JSON.stringify(tensors), new Uint8Array(bytes));

  test.each<[string, string, number[]]>([
    ['beyond 2^53', 'F32', [2 ** 27, 2 ** 27]],
    ['beyond any double', 'F32', Array.from({ length: 40 }, () => Number.MAX_SAFE_INTEGER)],
    ['half a byte', 'F4', [3]],
    ['of 10^6 dimensions', 'U8', Array.from({ length: 1e6 }, () => 2)],
  ])('a shape %s is no shape of 8 bytes', async (_what, dtype, shape) => {
    const files = { 'config.json': '{}', 'model.safetensors': shard({ x: tensor(dtype, shape, 0, 8) }, 8) };
    await expect(open(files)).rejects.toThrow(SizeMismatchError);
  });

  test('a size of zero makes nothing of all others', () => {
    expect(byteLength('F32', [...Array.from({ length: 40 }, () => 2 ** 53 - 1), 0])).toBe(0);
  });

  test('a billion fused experts of no elements', async () => {
    const prefix = 'model.layers.0.mlp.experts.';
    const files = {
      'config.json': '{}',
      'model.safetensors': shard({
        [`${prefix}gate_up_proj`]: tensor('BF16', [1e9, 2, 0], 0, 0),
        [`${prefix}down_proj`]: tensor('BF16', [1e9, 0, 1], 0, 0),
      }),
    };
    const checkpoint = await open(files);
    expect(() => detectModel(checkpoint)).toThrow(UnequalExpertError);
  });

  test('a billion experts, or groups, of a native checkpoint', async () => {
    const native = (bases: string, n: number, m: number) =>
      open({
        'config.json': '{}',
        'model.safetensors': shard(
          {
            [bases]: tensor('BF16', [m, 1, 1], 0, 2 * m),
            'model.layers.0.mlp.W_gate': tensor('BF16', [n, m], 2 * m, 2 * m + 2 * n * m),
          },
          2 * m + 2 * n * m,
        ),
      });
    const many = await native('model.layers.0.mlp.B_gate', 1e9, 0);
    expect(() => findNativeGroups(many)).toThrow(UnequalExpertError);
    const numbered = await native('model.layers.0.mlp.B_gate_99999999999', 1, 1);
    expect(() => findNativeGroups(numbered)).toThrow(MissingExpertError);
  });

  test('100 000 numbered bases take no time', async () => {
    const names = Array.from({ length: 1e5 }, (_, i) => `model.layers.0.mlp.B_gate_${i + 1}`);
    const entries = names.map((name, i) => [name, tensor('U8', [1, 1, 1], i, i + 1)] as const);
    const files = { 'config.json': '{}', 'model.safetensors': shard(Object.fromEntries(entries), 1e5) };
    const checkpoint = await open(files);
    const started = performance.now();
    expect(() => findNativeGroups(checkpoint)).toThrow(MissingExpertError);
    expect(performance.now() - started).toBeLessThan(2000);
  });

  test('a config that nests 65 deep is refused, one of 64 is read', async () => {
    const model = (depth: number) =>
      open({ 'config.json': `{"a":${'['.repeat(depth - 1)}${']'.repeat(depth - 1)}}`, 'model.safetensors': shard({}) });
    await expect(model(65)).rejects.toThrow(InvalidJsonError);
    await expect(model(1e6)).rejects.toThrow(InvalidJsonError);
    expect((await model(64)).tensors.size).toBe(0);
  });

  test.each(['config.json', 'model.safetensors.index.json'])(
    'a gigabyte of %s is refused before it is read',
    async (file) => {
      put(at(`huge ${file}`, 'config.json'), '{}');
      put(at(`huge ${file}`, file), '{');
      truncateSync(at(`huge ${file}`, file), 2 ** 30); // a sparse file
      put(at(`huge ${file}`, 'model.safetensors'), shard({}));
      const before = process.memoryUsage.rss();
      await expect(openCheckpoint(at(`huge ${file}`))).rejects.toThrow('the limit is');
      expect(process.memoryUsage.rss() - before).toBeLessThan(200e6);
    },
  );

  test('a config on one long line is edited in time', () => {
    const long = `{"a": [${Array.from({ length: 50_000 }, () => 1).join(',')}]}`;
    const started = performance.now();
    const edited = editConfig(long, { b: { c: [1] } });
    expect(JSON.parse(edited)).toEqual({ ...JSON.parse(long), b: { c: [1] } });
    expect(performance.now() - started).toBeLessThan(2000);
  });
});

test.each(['null', '{"weights": null}', '7', '{"weights": "x"}'])('config_groups of %s', async (group) => {
  const sizes = { layers: 2, experts: 4, rows: 8, cols: 16 };
  const folder = `int4 ${group.length}`;
  await generateFamily(at(folder), 'kimi_k2', { sizes, quantised: 'int4' });
  const config = JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8'));
  config.quantization_config.config_groups = { group_0: JSON.parse(group) };
  put(at(folder, 'config.json'), JSON.stringify(config));
  expect(detectModel(await openCheckpoint(at(folder))).layers.length).toBeGreaterThan(0);
});

test('names that objects inherit are names like any other', async () => {
  const names = ['__proto__', 'constructor', 'toString'];
  const header = `{${names.map((name, i) => `"${name}":{"dtype":"U8","shape":[1],"data_offsets":[${i},${i + 1}]}`).join(',')}}`;
  const index = `{"weight_map":{${names.map((name) => `"${name}":"model-1.safetensors"`).join(',')}}}`;
  const files = new Map([
    ['config.json', Buffer.from('{"__proto__": {"model_type": "qwen3_moe"}}')],
    ['model.safetensors.index.json', Buffer.from(index)],
    ['model-1.safetensors', Buffer.from(shardOf(header, Uint8Array.of(1, 2, 3)))],
  ]);
  const { tensors, config } = await openCheckpoint(memoryFolder(files));
  expect([...tensors.keys()]).toEqual(names);
  expect(config.model_type).toBeUndefined();
});
