/**
 * The disk fails at every kind of call, with different errors. Then it works again, and the same command gives the same result.
 */
import {
  cpSync,
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { type Call, interceptedFileSystem, systemError } from '../../fixtures/intercepted-file-system.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH, thoroughBut } from '../../fixtures/thorough.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import { JOURNAL_FILE } from '../../src/output/journal.js';
import { PARTIAL_FOLDER } from '../../src/output/output-folder.js';
import type { Progress } from '../run-options.js';
import { compress } from './compress.js';
import { fitFactors } from './fit.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const OPTIONS: CompressOptions = { bases: 2, steps: 20, shardSize: 3000, threads: 1 };

beforeAll(async () => {
  await generateCheckpoint(at('model'), { layers: 2, experts: 4, rows: 8, cols: 32, shardBytes: 3000 });
  writeFileSync(at('model', 'tokenizer.json'), '{}');
  await compress(at('model'), at('whole'), OPTIONS);
  await fitFactors(at('model'), at('whole-factors'), OPTIONS);
});

function expectSame(out: string, whole: string): void {
  expect(readdirSync(out).sort()).toEqual(readdirSync(whole).sort());
  for (const file of readdirSync(whole))
    if (file !== 'mobe.json')
      expect(readFileSync(join(out, file)).equals(readFileSync(join(whole, file))), file).toBe(true);
}

/** A file system whose matching calls fail, from the nth on. */
function failing(meant: (call: Call) => boolean, code: string, nth: number) {
  let count = 0;
  return interceptedFileSystem((call) => {
    if (meant(call) && ++count >= nth) throw systemError(code, call.operation);
    return undefined;
  });
}

const inPartial = ({ path }: Call): boolean => path.includes(PARTIAL_FOLDER);
const shardOut = (call: Call): boolean => inPartial(call) && call.path.endsWith('.safetensors');
const shardIn = ({ path }: Call): boolean => path.startsWith(at('model')) && path.endsWith('.safetensors');

describe('the message names the file and what to do; nothing looks whole; the same command then ends with the same bytes:', () => {
  const cases: Array<[string, (call: Call) => boolean, string, number, new (...args: never[]) => Error, RegExp]> = [
    [
      'no space for a shard',
      (it) => it.operation === 'write' && shardOut(it),
      'ENOSPC',
      9,
      errors.WriteError,
      /Free some space/,
    ],
    [
      'no space for a header',
      (it) => it.operation === 'write' && shardOut(it),
      'ENOSPC',
      1,
      errors.WriteError,
      /Free some space/,
    ],
    ['no space to reserve', (it) => it.operation === 'truncate', 'ENOSPC', 2, errors.WriteError, /Free some space/],
    [
      'no space for the journal',
      (it) => it.operation === 'write' && it.path.endsWith(JOURNAL_FILE),
      'ENOSPC',
      2,
      errors.WriteError,
      /Free some space/,
    ],
    [
      'no space for a small file',
      (it) => it.operation === 'write' && it.path.endsWith('config.json'),
      'ENOSPC',
      1,
      errors.WriteError,
      /config\.json/,
    ],
    [
      'a disk that fails as it is written',
      (it) => it.operation === 'write' && shardOut(it),
      'EIO',
      14,
      errors.WriteError,
      /system log/,
    ],
    [
      'a disk that fails as it is synced',
      (it) => it.operation === 'sync' && shardOut(it),
      'EIO',
      1,
      errors.WriteError,
      /system log/,
    ],
    [
      'a disk that fails as it is read',
      (it) => it.operation === 'read' && shardIn(it),
      'EIO',
      60,
      errors.ReadError,
      /system log/,
    ],
    [
      'too many open files, for a source',
      (it) => it.operation === 'open' && shardIn(it),
      'EMFILE',
      20,
      errors.ReadError,
      /ulimit/,
    ],
    [
      'too many open files, for an output',
      (it) => it.operation === 'open' && shardOut(it),
      'EMFILE',
      3,
      errors.WriteError,
      /ulimit/,
    ],
    [
      'permission to read lost',
      (it) => it.operation === 'open' && shardIn(it),
      'EACCES',
      25,
      errors.ReadError,
      /permissions/,
    ],
    [
      'permission to write lost',
      (it) => it.operation === 'open' && it.path.endsWith('README.md'),
      'EACCES',
      1,
      errors.WriteError,
      /permissions/,
    ],
  ];
  test.each(cases)('%s', async (name, meant, code, nth, kind, remedy) => {
    const out = at(name);
    const run = compress(at('model'), out, OPTIONS, { fileSystem: failing(meant, code, nth) });
    const failure = (await run.catch((error: Error) => error)) as Error;
    expect(failure).toBeInstanceOf(kind);
    expect(failure.message).toContain(code);
    expect(failure.message).toMatch(remedy);
    expect(failure.message).toContain(at());
    if (existsSync(out)) expect(readdirSync(out)).toEqual([PARTIAL_FOLDER]);
    await compress(at('model'), out, OPTIONS);
    expectSame(out, at('whole'));
  });
});

test('short reads and short writes change nothing', async () => {
  let calls = 0;
  const fileSystem = interceptedFileSystem(() => ({ atMost: 1 + (calls++ % 1000) }));
  await compress(at('model'), at('short'), OPTIONS, { fileSystem });
  expectSame(at('short'), at('whole'));
});

test(
  'whichever rename of the commit fails, no loader finds a checkpoint, and the next run finishes it without computing',
  THOROUGH,
  async () => {
    const { length: renames } = readdirSync(at('whole'));
    for (let nth = 1; nth <= renames; nth++) {
      const out = at(`rename-${nth}`);
      const moves = ({ operation, to }: Call): boolean => operation === 'rename' && !to?.includes(PARTIAL_FOLDER);
      const run = compress(at('model'), out, OPTIONS, { fileSystem: failing(moves, 'EIO', nth) });
      await expect(run).rejects.toThrow(errors.WriteError);
      await expect(run).rejects.toMatchObject({ kept: out });
      const held = readdirSync(out);
      expect(held.includes('config.json') && held.includes('model.safetensors.index.json')).toBe(false);
      const seen: Progress[] = [];
      const { already, groups } = await compress(at('model'), out, OPTIONS, { onProgress: (it) => seen.push(it) });
      expect([already, groups.length, seen]).toEqual([true, 4, []]);
      expectSame(out, at('whole'));
    }
  },
);

test(
  'a commit over an earlier result that fails at any call is finished, or replaced by --force',
  THOROUGH,
  async () => {
    const other: CompressOptions = { ...OPTIONS, seed: 5 };
    const { length: renames } = readdirSync(at('whole'));
    for (const nth of [1, renames]) {
      for (const operation of ['remove', 'rename'] as const) {
        const out = at(`over-${operation}-${nth}`);
        await compress(at('model'), out, other);
        const meant = (call: Call): boolean =>
          call.operation === operation && !inPartial({ ...call, path: call.to ?? call.path });
        const run = compress(at('model'), out, OPTIONS, { force: true, fileSystem: failing(meant, 'EIO', nth) });
        await expect(run).rejects.toThrow(errors.WriteError);
        cpSync(out, `${out}-forced`, { recursive: true });
        await compress(at('model'), out, OPTIONS);
        expectSame(out, at('whole'));
        await expect(compress(at('model'), `${out}-forced`, { ...OPTIONS, seed: 6 })).rejects.toThrow('seed');
        await compress(at('model'), `${out}-forced`, OPTIONS, { force: true });
        expectSame(`${out}-forced`, at('whole'));
      }
    }
  },
);

describe('a shard that changes while it is read stops the run, is named, and nothing of the run is kept:', () => {
  const cases: Array<[string, (shard: string) => void, RegExp]> = [
    ['cut short', (shard) => truncateSync(shard, 1000), /now 1000/],
    ['longer', (shard) => writeFileSync(shard, 'more', { flag: 'a' }), /bytes, now/],
    [
      'replaced',
      (shard) => {
        cpSync(shard, `${shard}.copy`, { preserveTimestamps: true });
        renameSync(`${shard}.copy`, shard);
      },
      /another file/,
    ],
    ['written to', (shard) => utimesSync(shard, 1, 1), /written to at 1970/],
    ['removed', (shard) => rmSync(shard), /ENOENT/],
  ];
  const cost = thoroughBut('cut short', 'removed');
  for (const [name, change, words] of cases)
    test(name, cost(name), async () => {
      for (const convert of [compress, fitFactors]) {
        const model = at(`${name}-model`);
        cpSync(at('model'), model, { recursive: true });
        const [shard] = readdirSync(model).filter((file) => file.endsWith('.safetensors')) as [string];
        const out = at(`${name}-out`);
        let done = false;
        const onProgress = ({ kind }: Progress): void => {
          if (kind !== 'group' || done) return;
          done = true;
          change(join(model, shard));
        };
        const run = convert(model, out, OPTIONS, { onProgress });
        await expect(run).rejects.toThrow(errors.SourceChangedError);
        await expect(run).rejects.toThrow(shard);
        await expect(run).rejects.toThrow(words);
        expect(existsSync(out)).toBe(false);
        rmSync(model, { recursive: true });
      }
    });
});

test('fit: a disk that fails keeps the groups that are finished, and the same command ends with the same bytes', async () => {
  const full = failing((it) => it.operation === 'write' && it.path.includes('layer-001'), 'ENOSPC', 2);
  const run = fitFactors(at('model'), at('factors'), OPTIONS, { fileSystem: full });
  await expect(run).rejects.toThrow(errors.WriteError);
  await expect(run).rejects.toMatchObject({ kept: at('factors') });
  const held = readdirSync(at('factors')).filter((file) => file !== PARTIAL_FOLDER);
  expect(held.every((file) => file.startsWith('layer-000'))).toBe(true);
  await fitFactors(at('model'), at('factors'), OPTIONS);
  expectSame(at('factors'), at('whole-factors'));
});
