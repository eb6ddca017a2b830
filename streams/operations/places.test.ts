/** Sources and outputs that are objects instead of locations, and locations with an unknown scheme. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { memoryFolder } from '../../fixtures/memory-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { PipeSourceError, UnknownSchemeError } from '../../src/errors.js';
import { nullOutput } from '../../src/output/null-output.js';
import type { Output } from '../../src/output/output.js';
import { OutputFolder } from '../../src/output/output-folder.js';
import type { SourceFolder } from '../../src/sources/files.js';
import { compress } from './compress.js';
import { expand } from './expand.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { inspect } from './inspect.js';
import { registerOutput } from './open-output.js';
import { plan } from './plan.js';
import { streamCheckpoint } from './stream.js';
import { verify } from './verify.js';
import { verifyIntegrity } from './verify-manifest.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const OPTIONS: CompressOptions = { bases: 2, steps: 3, threads: 1 };

const inMemory = (folder: string): SourceFolder =>
  memoryFolder(
    new Map(
      readdirSync(folder)
        .sort()
        .map((name) => [name, readFileSync(join(folder, name))]),
    ),
  );

function expectSame(out: string, whole: string): void {
  expect(readdirSync(out).sort()).toEqual(readdirSync(whole).sort());
  for (const file of readdirSync(whole))
    if (file !== 'mobe.json')
      // it has timings
      expect(readFileSync(join(out, file)).equals(readFileSync(join(whole, file))), file).toBe(true);
}

let model: SourceFolder;
beforeAll(async () => {
  await generateCheckpoint(at('model'), { layers: 2, experts: 4, rows: 8, cols: 32, shardBytes: 6000 });
  model = inMemory(at('model'));
  await compress(at('model'), at('whole'), OPTIONS);
  await fitFactors(at('model'), at('factors'), OPTIONS);
  await exportFactors(at('model'), at('factors'), at('whole-export'));
});

describe('from memory', () => {
  test('inspect and plan find what they find in the folder', async () => {
    const { folder: _, ...found } = await inspect(model);
    const { folder: __, ...expected } = await inspect(at('model'));
    expect(found).toEqual(expected);
    expect((await plan(model, OPTIONS)).groups).toHaveLength(4);
  });

  test('compress, fit, export and expand write the same bytes', async () => {
    await compress(model, at('compressed'), OPTIONS);
    expectSame(at('compressed'), at('whole'));
    await fitFactors(model, at('fitted'), OPTIONS);
    expectSame(at('fitted'), at('factors'));
    await exportFactors(model, at('factors'), at('exported'));
    expectSame(at('exported'), at('whole-export'));
    await expand(inMemory(at('whole')), at('expanded'));
    expect((await verify(model, at('expanded'))).problems).toEqual([]);
  });

  test('factor files are read too, beside a checkpoint in a folder', async () => {
    await exportFactors(at('model'), inMemory(at('factors')), at('from-factors'));
    expectSame(at('from-factors'), at('whole-export'));
  });

  test('a result is verified, with its source and without', async () => {
    expect((await verify(at('model'), inMemory(at('whole')))).problems).toEqual([]);
    expect((await verifyIntegrity(inMemory(at('whole')))).problems).toEqual([]);
  });
});

describe('into an object', () => {
  /** Records the calls of an output. */
  function noted(output: Output, calls: string[]): Output {
    return {
      ...nullOutput(),
      reserve: async ({ file }) => void calls.push(`reserve ${file}`),
      writeText: async (file) => void calls.push(file),
      commit: async () => void calls.push('commit'),
      abandon: async () => calls.push('abandon') > 0 && false,
      finish: async ({ id }) => void calls.push(id),
      write: output.write,
    };
  }

  test('that is a folder already open, the same bytes are written', async () => {
    await compress(at('model'), await OutputFolder.create(at('opened'), { neededBytes: 1 }), OPTIONS);
    expectSame(at('opened'), at('whole'));
  });

  test('a conversion and a fit go through the whole life of an output', async () => {
    for (const [run, shards] of [
      [compress, ['model.safetensors']],
      [
        fitFactors,
        [0, 1].flatMap((layer) =>
          ['gate', 'up'].map((it) => `layer-${String(layer).padStart(3, '0')}.${it}_proj.safetensors`),
        ),
      ],
    ] as const) {
      const calls: string[] = [];
      const { groups } = await run(model, noted(nullOutput(), calls), OPTIONS);
      expect(groups).toHaveLength(4);
      for (const shard of shards) expect(calls).toContain(`reserve ${shard}`);
      for (const layer of [0, 1]) expect(calls).toContain(`layer ${layer} up_proj`);
      expect(calls.slice(-2)).toEqual(['mobe.json', 'commit']);
    }
  });

  test('that fails, it is abandoned', async () => {
    const calls: string[] = [];
    const failing = { ...nullOutput(), write: () => Promise.reject(new Error('full')) };
    for (const run of [compress, fitFactors])
      await expect(run(model, noted(failing, calls), OPTIONS)).rejects.toThrow('full');
    expect(calls.filter((it) => it === 'abandon')).toHaveLength(2);
    expect(calls).not.toContain('commit');
  });

  test('a checkpoint is streamed as it is', async () => {
    const files: string[] = [];
    const output: Output = { ...nullOutput(), writeFile: async (file) => void files.push(file) };
    expect(await streamCheckpoint(model, output)).toBeGreaterThan(0);
    expect(files).toEqual((await model.files.list(model.folder)).map(({ path }) => path));
  });
});

test('layers that were fitted one after another are exported together, as if they were fitted at once', async () => {
  for (const layers of [[0], [0, 1]]) await fitFactors(model, at('layers'), { ...OPTIONS, layers });
  expect((await fitFactors(model, at('layers'), { ...OPTIONS, layers: [0, 1] })).already).toBe(true);
  await exportFactors(at('model'), at('layers'), at('layers-export'));
  expectSame(at('layers-export'), at('whole-export'));
});

describe('by its scheme', () => {
  test('an output is opened by what was registered', async () => {
    registerOutput('bucket', async (location, { neededBytes }) => ({
      output: await OutputFolder.create(at(location.slice('bucket://'.length)), { neededBytes }),
    }));
    await compress(at('model'), 'bucket://in-a-bucket', OPTIONS);
    expectSame(at('in-a-bucket'), at('whole'));
  });

  test('what nothing opens is refused, with what is known', async () => {
    await expect(compress(at('model'), 'gs://bucket/out', OPTIONS)).rejects.toThrow(UnknownSchemeError);
    await expect(compress(at('model'), 'gs://bucket/out', OPTIONS)).rejects.toThrow(
      '"-", ws://…, wss://…, hf://…, s3://…',
    );
    await expect(fitFactors(at('model'), 'ws://host:1/', OPTIONS)).rejects.toThrow(UnknownSchemeError);
    const secret = compress(at('model'), 'https://user:secret@host/out', OPTIONS);
    await expect(secret).rejects.toThrow('https://host/out cannot be written to. What can is a folder');
    for (const read of [inspect, plan, streamCheckpoint]) {
      await expect(read('ftp://host/model')).rejects.toThrow('a folder of this machine, hf://…, https://…, http://…');
      await expect(read('-')).rejects.toThrow(PipeSourceError);
    }
  });
});
