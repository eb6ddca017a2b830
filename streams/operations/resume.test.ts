/** An interrupted conversion resumes where it stopped, checks everything that it finds, and gives the same bytes. */
import {
  appendFileSync,
  cpSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, type TestOptions, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH, thoroughBut } from '../../fixtures/thorough.js';
import { LENGTH_BYTES } from '../../src/checkpoint/header.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import { JOURNAL_FILE } from '../../src/output/journal.js';
import { PARTIAL_FOLDER } from '../../src/output/output-folder.js';
import type { Progress, RunOptions } from '../run-options.js';
import { compress } from './compress.js';
import { fitFactors } from './fit.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const OPTIONS: CompressOptions = { bases: 2, steps: 100, shardSize: 6000, threads: 1 };

beforeAll(async () => {
  await generateCheckpoint(at('model'), { layers: 3, experts: 4, rows: 16, cols: 64, shardBytes: 6000 });
  await compress(at('model'), at('whole'), OPTIONS);
  await fitFactors(at('model'), at('whole-factors'), OPTIONS);
  await interrupted(compress, at('interrupted'), 3);
});

/** Stops a run when so many groups are finished. */
async function interrupted(
  convert: typeof compress,
  out: string,
  groups: number,
  run: RunOptions = {},
  model = at('model'),
): Promise<void> {
  const controller = new AbortController();
  let finished = 0;
  const onProgress = ({ kind }: Progress): void => {
    if (kind === 'group' && ++finished === groups) controller.abort();
  };
  const running = convert(model, out, OPTIONS, { ...run, onProgress, signal: controller.signal });
  await expect(running).rejects.toThrow(errors.InterruptedError);
  await expect(running).rejects.toMatchObject({ kept: out });
}

/** Copies the interrupted run. */
function copyOf(name: string): string {
  cpSync(at('interrupted'), at(name), { recursive: true });
  return at(name);
}

/** Runs to the end. Returns the groups that it fitted and the bytes that it wrote. */
async function finish(out: string, options = OPTIONS, run: RunOptions = {}) {
  const fitted: string[] = [];
  let bytes = 0;
  const onProgress = (it: Progress): void => {
    if (it.kind === 'group') fitted.push(`${it.report.layer} ${it.report.projection}`);
    if (it.kind === 'phase') bytes = 0;
    if (it.kind === 'bytes') bytes = it.bytes;
  };
  await compress(at('model'), out, options, { ...run, onProgress });
  return { fitted, bytes };
}

function expectSame(out: string, whole = at('whole')): void {
  expect(readdirSync(out).sort()).toEqual(readdirSync(whole).sort());
  const untimed = (text: string) => text.replace(/"(seconds|peakRssBytes|sha256)": ("\w+"|[\d.e+-]+)/g, '');
  for (const file of readdirSync(whole)) {
    const read = (folder: string) => readFileSync(join(folder, file));
    if (file === 'mobe.json') expect(untimed(read(out).toString())).toBe(untimed(read(whole).toString()));
    else expect(read(out).equals(read(whole)), file).toBe(true);
  }
}

const journal = (out: string): string => join(out, PARTIAL_FOLDER, JOURNAL_FILE);

test('what is finished is not done again: groups are not fitted, copies not written', async () => {
  const out = copyOf('goes-on');
  const whole = await finish(at('from-nothing'));
  const { fitted, bytes } = await finish(out);
  expect(whole.fitted).toHaveLength(6);
  expect(fitted.length).toBeLessThanOrEqual(3);
  expect(bytes).toBeLessThan(0.8 * whole.bytes);
  expectSame(out);
});

test('a last line of the journal that is torn is as if it had not been written', async () => {
  const out = copyOf('torn');
  appendFileSync(journal(out), '0badc0de {"done":"layer 2 up_proj","note":{');
  expect((await finish(out)).fitted).toContain('2 up_proj');
  expectSame(out);
});

test('a damaged line is believed as little as what follows it', async () => {
  const out = copyOf('damaged');
  const lines = readFileSync(journal(out), 'utf8').split('\n');
  expect(lines[1]).toContain('"start":0');
  lines[1] = (lines[1] as string).replace('"start":0', '"start":1');
  writeFileSync(journal(out), lines.join('\n'));
  expect((await finish(out)).fitted).toHaveLength(6);
  expectSame(out);
});

describe('bytes on disk that are not what the journal says are written again:', () => {
  const flip = (file: string, position: number): void => {
    const bytes = readFileSync(file);
    bytes[position] = (bytes[position] as number) ^ 1;
    writeFileSync(file, bytes);
  };
  const shardsOf = (out: string): string[] =>
    readdirSync(join(out, PARTIAL_FOLDER))
      .filter((file) => file.endsWith('.safetensors'))
      .map((file) => join(out, PARTIAL_FOLDER, file));

  for (const [where, cost] of [
    ['the first byte of each shard', {}],
    ['the last byte of each shard', THOROUGH],
  ] as const)
    test(where, cost, async () => {
      const out = copyOf(where);
      for (const shard of shardsOf(out)) {
        const bytes = readFileSync(shard);
        const first = LENGTH_BYTES + Number(bytes.readBigUInt64LE(0));
        flip(shard, where.includes('first') ? first : bytes.length - 1);
      }
      await finish(out);
      expectSame(out);
    });

  test('a header', THOROUGH, async () => {
    const out = copyOf('header');
    flip(shardsOf(out)[0] as string, 20);
    await finish(out);
    expectSame(out);
  });

  test('a shard that is gone', async () => {
    const out = copyOf('gone');
    for (const shard of shardsOf(out)) rmSync(shard);
    expect((await finish(out)).fitted).toHaveLength(6);
    expectSame(out);
  });
});

describe('another run is refused, saying what differs, and starts over when forced:', () => {
  const cost = thoroughBut('settings');
  const others: Array<[string, CompressOptions, string]> = [
    ['settings', { ...OPTIONS, seed: 9 }, 'seed 0, now 9'],
    ['batches', { ...OPTIONS, maxMemory: 2 ** 40, batchExperts: 3 }, 'batchExperts default, now 3'],
    ['threads', { ...OPTIONS, threads: 1, shardSize: 7000 }, 'shardSize 6000, now 7000'],
  ];
  for (const [name, options, words] of others)
    test(name, cost(name), async () => {
      const out = copyOf(`other-${name}`);
      const run = compress(at('model'), out, options);
      await expect(run).rejects.toThrow(errors.UnfinishedRunError);
      await expect(run).rejects.toThrow(words);
      expect((await finish(out, options, { force: true })).fitted).toHaveLength(6);
    });

  test('a source of which every shard was written to since', async () => {
    const out = copyOf('other-source');
    cpSync(at('model'), at('touched'), { recursive: true, preserveTimestamps: true });
    for (const shard of shardsIn(at('touched'))) utimesSync(at('touched', shard), 1, 1);
    const run = compress(at('touched'), out, OPTIONS);
    await expect(run).rejects.toThrow(errors.UnfinishedRunError);
    await expect(run).rejects.toThrow('shards of its source were written to');
  });

  test.each([false, true])(
    'a source whose config has changed, one of its shards written to as well: %s',
    async (touched) => {
      const out = copyOf(`other-config-${touched}`);
      const model = at(`changed-config-${touched}`);
      cpSync(at('model'), model, { recursive: true, preserveTimestamps: true });
      const config = readFileSync(join(model, 'config.json'), 'utf8');
      writeFileSync(join(model, 'config.json'), config.replace('{', '{"new": 1,'));
      if (touched) utimesSync(join(model, shardsIn(model)[0] as string), 1, 1);
      await expect(compress(model, out, OPTIONS)).rejects.toThrow('made from another source');
    },
  );

  test('another version of this program', async () => {
    const out = copyOf('other-version');
    const { crc32 } = await import('node:zlib');
    const lines = readFileSync(journal(out), 'utf8').split('\n');
    const json = (lines[0] as string).slice(9).replace(/"version":"[^"]*"/, '"version":"0.0.1"');
    lines[0] = `${crc32(json).toString(16).padStart(8, '0')} ${json}`;
    writeFileSync(journal(out), lines.join('\n'));
    await expect(compress(at('model'), out, OPTIONS)).rejects.toThrow('version 0.0.1');
  });
});

const shardsIn = (folder: string): string[] => readdirSync(folder).filter((file) => file.endsWith('.safetensors'));

describe('where a shard of the source was replaced since, what was made from the others is kept:', () => {
  const cases: ReadonlyArray<[string, TestOptions, (bytes: Buffer) => void]> = [
    ['by the same bytes', THOROUGH, () => {}],
    ['by others', {}, (bytes) => bytes.copyWithin(bytes.length - 64, bytes.length - 128, bytes.length - 64)],
  ];
  for (const [name, cost, change] of cases)
    test(name, cost, async () => {
      const model = at(name, 'model');
      const out = at(name, 'resumed');
      cpSync(at('model'), model, { recursive: true });
      await interrupted(compress, out, 5, {}, model);
      const { tensors } = await openCheckpoint(model);
      const shard = tensors.get('model.layers.0.mlp.experts.0.gate_proj.weight')?.file as string;
      const bytes = readFileSync(shard);
      change(bytes);
      writeFileSync(shard, bytes);
      const fitted: string[] = [];
      const onProgress = (it: Progress): void => {
        if (it.kind === 'group') fitted.push(`${it.report.layer} ${it.report.projection}`);
      };
      await compress(model, out, OPTIONS, { onProgress });
      expect(fitted).toContain('0 gate_proj');
      expect(fitted).not.toContain('1 gate_proj');
      await compress(model, at(name, 'whole'), OPTIONS);
      expectSame(out, at(name, 'whole'));
    });
});

describe('a fit goes on inside a group:', () => {
  /** Stops in the middle of the first fit, after its state was saved. */
  async function stopInside(convert: typeof compress, out: string, options: CompressOptions): Promise<void> {
    const controller = new AbortController();
    const onProgress = (it: Progress): void => {
      if (it.kind === 'step' && it.step > 150) controller.abort();
    };
    const run = convert(at('model'), out, options, { onProgress, signal: controller.signal, saveEvery: 0.001 });
    await expect(run).rejects.toThrow(errors.InterruptedError);
    await expect(run).rejects.toMatchObject({ kept: out });
    expect(readdirSync(join(out, PARTIAL_FOLDER)).some((file) => file.endsWith('.state'))).toBe(true);
  }

  const LONG: CompressOptions = { ...OPTIONS, layers: [1], projections: ['up_proj'] };

  const VARPRO: CompressOptions = { ...LONG, steps: 2000, learningRate: 0.02 };
  beforeAll(() => compress(at('model'), at('varpro-compress-whole'), VARPRO));

  const cost = thoroughBut('varpro by compress');
  for (const [solver, convert] of [
    ['varpro', compress],
    ['adam', compress],
    ['varpro', fitFactors],
  ] as const)
    test(`${solver} by ${convert.name}`, cost(`${solver} by ${convert.name}`), async () => {
      const options: CompressOptions = solver === 'adam' ? { ...VARPRO, solver, steps: 3000 } : VARPRO;
      const name = `${solver}-${convert.name}`;
      if (!existsSync(at(`${name}-whole`))) await convert(at('model'), at(`${name}-whole`), options);
      await stopInside(convert, at(name), options);
      const steps: number[] = [];
      const onProgress = (it: Progress): void => {
        if (it.kind === 'step') steps.push(it.step);
      };
      await convert(at('model'), at(name), options, { onProgress });
      expect(steps[0]).toBeGreaterThan(100);
      expectSame(at(name), at(`${name}-whole`));
      expect(existsSync(at(name, PARTIAL_FOLDER))).toBe(false);
    });

  for (const [damage, cost] of [
    ['bytes', {}],
    ['identity', THOROUGH],
  ] as const)
    test(`a state whose ${damage} are not its own is left alone: it begins anew`, cost, async () => {
      const out = at(`state-${damage}`);
      await stopInside(compress, out, VARPRO);
      const [name] = readdirSync(join(out, PARTIAL_FOLDER)).filter((file) => file.endsWith('.state')) as [string];
      const file = join(out, PARTIAL_FOLDER, name);
      const bytes = readFileSync(file);
      const position = damage === 'bytes' ? bytes.length - 5 : bytes.indexOf('"identity":"') + 14;
      bytes[position] = damage === 'bytes' ? (bytes[position] as number) ^ 1 : 0x78;
      writeFileSync(file, bytes);
      const steps: number[] = [];
      const onProgress = (it: Progress): void => {
        if (it.kind === 'step') steps.push(it.step);
      };
      await compress(at('model'), out, VARPRO, { onProgress });
      expect(steps[0]).toBe(1);
      expectSame(out, at('varpro-compress-whole'));
    });
});

test('fit: interrupted and run again, only what is missing is fitted', async () => {
  await interrupted(fitFactors as typeof compress, at('factors'), 2);
  const fitted: string[] = [];
  const onProgress = (it: Progress): void => {
    if (it.kind === 'group') fitted.push(`${it.report.layer} ${it.report.projection}`);
  };
  await fitFactors(at('model'), at('factors'), OPTIONS, { onProgress });
  expect(fitted.length).toBeLessThanOrEqual(4);
  for (const file of readdirSync(at('whole-factors')))
    if (file !== 'mobe.json')
      expect(readFileSync(at('factors', file)).equals(readFileSync(at('whole-factors', file))), file).toBe(true);
});

test('interrupted before anything was computed, nothing is left', async () => {
  const controller = new AbortController();
  const onProgress = ({ kind }: Progress): void => {
    if (kind === 'plan') controller.abort();
  };
  const run = compress(at('model'), at('too-early'), OPTIONS, { onProgress, signal: controller.signal });
  await expect(run).rejects.toThrow(errors.InterruptedError);
  expect(existsSync(at('too-early'))).toBe(false);
});
