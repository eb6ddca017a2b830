import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { generateFamily } from '../../fixtures/generate-family.js';
import { interceptedFileSystem, systemError } from '../../fixtures/intercepted-file-system.js';
import { EVALUATION_TEXT, TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { openRecord } from '../../src/calibration/open-record.js';
import { PROBES_PREFIX } from '../../src/calibration/record.js';
import { fingerprint, openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import {
  DiskTooSmallError,
  InterruptedError,
  type MobeError,
  OptionError,
  OtherRecordError,
  OutputInsideInputError,
  OutputNotEmptyError,
  UnfinishedRunError,
  WriteError,
} from '../../src/errors.js';
import { nodeFileSystem } from '../../src/file-system.js';
import { PARTIAL_FOLDER } from '../../src/output/output-folder.js';
import { type CalibrationPlan, type CalibrationProgress, calibrate } from './calibrate.js';

const root = temporaryFolder();
const at = (name: string) => join(root, name);
const text = [EVALUATION_TEXT];
const ONE = { text, threads: 1, sequenceLength: 16, tokens: 60 } as const;

const contents = (folder: string): Map<string, string> =>
  new Map(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name)).toString('base64')]));

test('a record says what it is of, and holds the tokens of the text', async () => {
  const plans: CalibrationPlan[] = [];
  const seen: CalibrationProgress[] = [];
  const result = await calibrate(TINY_MODEL, at('whole'), ONE, {
    onPlan: (it) => plans.push(it),
    onLayer: (it) => seen.push(it),
  });
  expect(result.already).toBe(false);
  expect(seen.map(({ layer, done }) => [layer, done])).toEqual([0, 1, 2, 3].map((layer) => [layer, 4]));
  const record = await openRecord(at('whole'), {
    sourceFingerprint: await fingerprint(await openCheckpoint(TINY_MODEL)),
  });
  expect(record.facts).toMatchObject({ sequences: 4, length: 16, seed: 0, layers: [0, 1, 2, 3] });
  expect(record.facts.texts).toMatchObject([{ name: 'evaluation.txt', bytes: readFileSync(EVALUATION_TEXT).length }]);
  const tokens = await record.tokens();
  for (let first = 0; first < 64; first += 16) {
    const sequence = Buffer.from(tokens.subarray(first, first + 16)).toString('latin1');
    expect(readFileSync(EVALUATION_TEXT, 'latin1')).toContain(sequence);
  }
  await record.close();

  const [plan] = plans;
  const bytes = readdirSync(at('whole')).map((name) =>
    name === 'calibration.json' ? 0 : readFileSync(at(`whole/${name}`)).length,
  );
  expect(plan).toMatchObject({ tokens: 64, tokensPerExpert: 8, layers: 4, batchTokens: 64, notes: [] });
  expect(plan?.recordBytes).toBe(bytes.reduce((sum, it) => sum + it));
});

test('without options, each expert gets five times the width of tokens, or all there are, which is said', async () => {
  const plans: CalibrationPlan[] = [];
  const plan = async (...files: string[]): Promise<void> => {
    const stop = new AbortController();
    const onPlan = (it: CalibrationPlan): void => {
      plans.push(it);
      stop.abort();
    };
    const run = calibrate(TINY_MODEL, at('default'), { text: files, threads: 1 }, { onPlan, signal: stop.signal });
    await expect(run).rejects.toThrow(InterruptedError);
  };
  await plan(EVALUATION_TEXT);
  writeFileSync(at('long.txt'), readFileSync(EVALUATION_TEXT, 'utf8').repeat(20));
  await plan(at('long.txt'));
  expect(plans[0]).toMatchObject({ sequences: 6, length: 256 });
  expect(plans[0]?.notes).toEqual([expect.stringContaining('1536 tokens, and 7680')]);
  expect(plans[1]).toMatchObject({ sequences: 30, tokensOfWidth: 5, notes: [] });
  expect(existsSync(at('default'))).toBe(false); // nothing was finished
});

describe('a record that is there', () => {
  test('is kept with the short fits that an allocation added to it', async () => {
    cpSync(at('whole'), at('probed'), { recursive: true });
    mkdirSync(join(at('probed'), `${PROBES_PREFIX}0123`));
    expect(await calibrate(TINY_MODEL, at('probed'), ONE)).toMatchObject({ already: true });
  });

  test('is kept, if it is the same', async () => {
    const before = contents(at('whole'));
    expect(await calibrate(TINY_MODEL, at('whole'), ONE)).toMatchObject({ already: true, plan: { tokens: 64 } });
    expect(contents(at('whole'))).toEqual(before);
  });

  test('is replaced only by force, if it is another', async () => {
    cpSync(at('whole'), at('other'), { recursive: true });
    const longer = { ...ONE, tokens: 80 };
    await expect(calibrate(TINY_MODEL, at('other'), longer)).rejects.toThrow(OutputNotEmptyError);
    expect(contents(at('other'))).toEqual(contents(at('whole')));
    await calibrate(TINY_MODEL, at('other'), longer, { force: true });
    expect((await openRecord(at('other'))).facts.sequences).toBe(5);
    expect(existsSync(at(`other/${PARTIAL_FOLDER}`))).toBe(false);
  });

  test('with the short fits of runs that used it, is refused as another record, or replaced', async () => {
    cpSync(at('whole'), at('used'), { recursive: true });
    mkdirSync(at('used/probes-0123456789ab/bases-2'), { recursive: true });
    const other = { ...ONE, seed: 1 };
    await expect(calibrate(TINY_MODEL, at('used'), other)).rejects.toThrow(/holds a record of another/);
    await calibrate(TINY_MODEL, at('used'), other, { force: true });
    expect((await openRecord(at('used'))).facts.seed).toBe(1);
  });

  test('is refused for another model', async () => {
    await expect(openRecord(at('whole'), { sourceFingerprint: 'x' })).rejects.toThrow(OtherRecordError);
  });
});

test('of a model whose first layer is dense, with shared experts: resumed, it has the same bytes', async () => {
  await generateFamily(at('deepseek'), 'deepseek_v3', { config: { max_position_embeddings: 64 } });
  cpSync(join(TINY_MODEL, 'tokenizer.json'), at('deepseek/tokenizer.json'));
  // The model has 64 tokens, and each token is one byte.
  writeFileSync(at('numbers.txt'), Array.from({ length: 100 }, (_, i) => i * i).join(' '));
  const own = { ...ONE, text: [at('numbers.txt')] };
  await calibrate(at('deepseek'), at('deepseek-whole'), own);
  const record = await openRecord(at('deepseek-whole'));
  expect(record.facts.layers).toEqual([1, 2]);
  expect(await record.layer(2)).toMatchObject({ tokens: 64, expertsPerToken: 4 });
  await record.close();
  const stop = new AbortController();
  const run = calibrate(at('deepseek'), at('deepseek-resumed'), own, {
    onLayer: () => stop.abort(),
    signal: stop.signal,
  });
  await expect(run).rejects.toThrow(InterruptedError);
  const seen: number[] = [];
  await calibrate(at('deepseek'), at('deepseek-resumed'), own, { onLayer: ({ layer }) => seen.push(layer) });
  expect(seen).toEqual([1, 2]);
  expect(contents(at('deepseek-resumed'))).toEqual(contents(at('deepseek-whole')));
});

/** Ends the run after this many calls of the layers. */
async function interrupted(folder: string, calls: number, options = {}): Promise<MobeError> {
  const stop = new AbortController();
  let left = calls;
  const onLayer = (): void => {
    if (--left === 0) stop.abort();
  };
  const error = await calibrate(TINY_MODEL, folder, { ...ONE, ...options }, { onLayer, signal: stop.signal }).catch(
    (it) => it,
  );
  expect(error).toBeInstanceOf(InterruptedError);
  return error;
}

describe('an interrupted run', () => {
  test('resumes after the last layer, to the same bytes', async () => {
    const error = await interrupted(at('resumed'), 2);
    expect(error.kept).toBe(at('resumed'));
    const seen: number[] = [];
    await calibrate(TINY_MODEL, at('resumed'), ONE, { onLayer: ({ layer }) => seen.push(layer) });
    expect(seen).toEqual([2, 3]);
    expect(contents(at('resumed'))).toEqual(contents(at('whole')));
  });

  test('is not mixed with another text, and force starts again', async () => {
    await interrupted(at('mixed'), 2);
    const other = { ...ONE, seed: 1 };
    await expect(calibrate(TINY_MODEL, at('mixed'), other)).rejects.toThrow(UnfinishedRunError);
    await calibrate(TINY_MODEL, at('mixed'), ONE, { force: true });
    expect(contents(at('mixed'))).toEqual(contents(at('whole')));
  });

  test('finds a file that was damaged in between', async () => {
    await interrupted(at('damaged'), 2);
    const states = at(`damaged/${PARTIAL_FOLDER}/states-1.f32`);
    const bytes = readFileSync(states);
    bytes[1000] = (bytes[1000] as number) ^ 1;
    writeFileSync(states, bytes);
    await expect(calibrate(TINY_MODEL, at('damaged'), ONE)).rejects.toThrow('--force');
    rmSync(states);
    await expect(calibrate(TINY_MODEL, at('damaged'), ONE)).rejects.toThrow('missing');
  });
});

/** Runs with a file system that stops at this call, as if the machine did. Returns the number of calls. */
async function cutAt(folder: string, at: number): Promise<number> {
  let calls = 0;
  const fileSystem = interceptedFileSystem(({ operation, path }) => {
    if (path.endsWith('.lock')) return undefined; // a process that ended has no lock
    calls++;
    if (calls === at && operation === 'write') return { atMost: 7 };
    if (calls > at) throw systemError('EIO', operation);
    return undefined;
  });
  const error = await calibrate(TINY_MODEL, folder, ONE, { fileSystem }).catch((it: unknown) => it);
  // After the record is whole, only the tidying up can fail, and that is no error.
  if (calls > at && !(error instanceof Error)) await (await openRecord(folder)).close();
  return calls;
}

describe('cut off at a call of the file system and run again, it ends with the same bytes', () => {
  test.each([30, 60, 84])('call %i', async (cut) => {
    expect(await check(cut)).toBeGreaterThan(cut);
  });
  test('any call', { ...THOROUGH, timeout: 600_000 }, async () => {
    let cut = 1;
    while ((await check(cut)) > cut) cut++;
    expect(cut).toBeGreaterThan(84);
  });

  async function check(cut: number): Promise<number> {
    if (!existsSync(at('whole'))) await calibrate(TINY_MODEL, at('whole'), ONE); // when this test runs alone
    const folder = at(`cut-${cut}`);
    const calls = await cutAt(folder, cut);
    await calibrate(TINY_MODEL, folder, ONE);
    expect(contents(folder), `call ${cut}`).toEqual(contents(at('whole')));
    rmSync(folder, { recursive: true });
    return calls;
  }
});

describe('text that the model writes', () => {
  const written = { fromModel: true, threads: 1, sequenceLength: 5 } as const;
  const tokensIn = async (folder: string): Promise<Int32Array> => {
    const record = await openRecord(folder);
    const tokens = await record.tokens();
    await record.close();
    return tokens;
  };

  test('is the same when the writing was interrupted, and said to be no text', async () => {
    const options = { ...written, tokens: 170 };
    await calibrate(TINY_MODEL, at('written'), options);
    const stop = new AbortController();
    const onWriting = ({ done }: { done: number }): void => {
      if (done > 160) stop.abort();
    };
    const run = calibrate(TINY_MODEL, at('writing'), options, { onWriting, signal: stop.signal });
    await expect(run).rejects.toMatchObject({ kept: at('writing') });
    const seen: number[] = [];
    await calibrate(TINY_MODEL, at('writing'), options, { onWriting: ({ done }) => seen.push(done) });
    expect(seen[0]).toBe(162); // the first 32 sequences were kept
    expect(contents(at('writing'))).toEqual(contents(at('written')));
    const record = await openRecord(at('written'));
    expect(record.facts).toMatchObject({ sequences: 34, fromModel: true, texts: [] });
  });

  test('does not depend on how many sequences are written, but on the seed', async () => {
    const all = await tokensIn(at('written'));
    for (const [name, options] of [
      ['one', { tokens: 5 }],
      ['seed', { tokens: 15, seed: 1 }],
    ] as const) {
      await calibrate(TINY_MODEL, at(name), { ...written, ...options });
      const few = await tokensIn(at(name));
      expect(String(few) === String(all.subarray(0, few.length))).toBe(name === 'one');
    }
  });
});

describe('is refused:', () => {
  test.each<[string, Partial<Parameters<typeof calibrate>[2]>, string]>([
    ['more tokens than there are', { tokens: 5000 }, 'the texts have 1648'],
    ['sequences beyond the context', { sequenceLength: 257 }, 'made for 256'],
    ['no text', { text: [] }, 'at least one'],
    ['a text for a model that writes its own', { fromModel: true }, 'leave one of the two out'],
    ['a text that is not there', { text: [at('none.txt')] }, 'cannot be read'],
    ['a folder as text', { text: [root] }, 'cannot be read'],
  ])('%s', async (_, options, words) => {
    const error = await calibrate(TINY_MODEL, at('refused'), { ...ONE, ...options }).catch((it) => it);
    expect(error).toBeInstanceOf(OptionError);
    expect(error.message).toContain(words);
    expect(existsSync(at('refused'))).toBe(false);
  });

  test('a text that is not UTF-8', async () => {
    writeFileSync(at('latin1.txt'), Buffer.from('caf\u00e9 '.repeat(40), 'latin1'));
    await expect(calibrate(TINY_MODEL, at('refused'), { ...ONE, text: [at('latin1.txt')] })).rejects.toThrow(
      'not UTF-8',
    );
  });

  test('a model that cannot be run, before its tokenizer is asked for', async () => {
    await generateFamily(at('mixtral'), 'mixtral');
    await expect(calibrate(at('mixtral'), at('refused'), ONE)).rejects.toThrow(/mobe calibrate --script/);
  });

  test('a folder with other files, and the model itself', async () => {
    mkdirSync(at('full'));
    appendFileSync(at('full/letter.txt'), 'Dear');
    for (const force of [false, true])
      await expect(calibrate(TINY_MODEL, at('full'), ONE, { force })).rejects.toThrow(OutputNotEmptyError);
    await expect(calibrate(TINY_MODEL, join(TINY_MODEL, 'record'), ONE)).rejects.toThrow(OutputInsideInputError);
  });

  test('a disk that is too small', async () => {
    const fileSystem = { ...nodeFileSystem, freeBytes: async () => 100_000 };
    await expect(calibrate(TINY_MODEL, at('refused'), ONE, { fileSystem })).rejects.toThrow(DiskTooSmallError);
    expect(existsSync(at('refused'))).toBe(false);
  });

  test('a model without experts', async () => {
    await generateFamily(at('dense'), 'qwen3_moe', { config: { max_position_embeddings: 64 } });
    cpSync(join(TINY_MODEL, 'tokenizer.json'), at('dense/tokenizer.json'));
    const config = JSON.parse(readFileSync(at('dense/config.json'), 'utf8'));
    writeFileSync(at('dense/config.json'), JSON.stringify({ ...config, model_type: 'llama' }));
    await expect(calibrate(at('dense'), at('refused'), ONE)).rejects.toThrow('llama');
  });
});

test('a full disk ends the run, which resumes when there is room', async () => {
  let writes = 0;
  const fileSystem = interceptedFileSystem(({ operation, path }) => {
    if (operation === 'write' && path.includes('layer-001') && ++writes === 1) throw systemError('ENOSPC', 'write');
    return undefined;
  });
  const error = await calibrate(TINY_MODEL, at('filled'), ONE, { fileSystem }).catch((it) => it);
  expect(error).toBeInstanceOf(WriteError);
  expect(error.kept).toBe(at('filled'));
  await calibrate(TINY_MODEL, at('filled'), ONE);
  expect(contents(at('filled'))).toEqual(contents(at('whole')));
});
