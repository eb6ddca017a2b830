import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, type TestOptions, test } from 'vitest';
import { forgetManifest } from '../../fixtures/forget-manifest.js';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { readWithNpmSafetensors } from '../../fixtures/npm-safetensors.js';
import { REFERENCE_CURVES, TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { decodeFloats } from '../../src/checkpoint/codec.js';
import { type Checkpoint, openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { isFitted } from '../../src/conversion/run-report.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import { factorParameters } from '../../src/methods/mobe/problem.js';
import { groupedSvd, perExpertSvd } from '../../src/methods/svd/baselines.js';
import { detectModel } from '../../src/models/detect.js';
import { LocalFiles } from '../../src/sources/files.js';
import type { Progress, RunResult } from '../run-options.js';
import { compress } from './compress.js';
import { expand } from './expand.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const QUICK: CompressOptions = { bases: 8, steps: 20, shardSize: 3e6 };

async function tensorValues({ tensors }: Checkpoint, name: string): Promise<Float32Array> {
  const tensor = tensors.get(name);
  if (!tensor) throw new RangeError(`no tensor ${name}`);
  const reader = new LocalFiles();
  const values = new Float32Array(tensor.shape.reduce((a, b) => a * b, 1));
  decodeFloats(tensor.dtype as 'BF16', await reader.readRange(tensor), values);
  await reader.close();
  return values;
}

/**
 * Expects the same file names and bytes, except in `mobe.json`, which has timings, the model card, and the manifest, which
 * covers it.
 */
function expectSameFiles(a: string, b: string): void {
  const files = (folder: string) =>
    readdirSync(folder).filter((file) => !['mobe.json', 'mobe.manifest.json', 'README.md'].includes(file));
  expect(files(a)).toEqual(files(b));
  for (const file of files(a)) expect(readFileSync(join(a, file)).equals(readFileSync(join(b, file))), file).toBe(true);
}

/** Layer 2 stands for all in `npm test`. */
const DEFAULTS: ReadonlyArray<[layers: string, TestOptions, CompressOptions, groups: number]> = [
  ['layer 2', {}, { layers: [2] }, 2],
  ['all layers', THOROUGH, {}, 8],
];
describe.each(DEFAULTS)('the trained fixture at 24 % fewer expert parameters, %s', (layers, cost, options, groups) => {
  const out = at(`default ${layers}`);
  let result: RunResult;
  const seen: Progress[] = [];
  beforeAll(async () => {
    result = await compress(TINY_MODEL, out, options, { onProgress: (progress) => seen.push(progress) });
  });

  test('every group beats per-expert SVD and grouped SVD of the same size', THOROUGH, async () => {
    const source = await openCheckpoint(TINY_MODEL);
    const { layers } = detectModel(source);
    expect(result.groups).toHaveLength(groups);
    const problem = { experts: 32, rows: 64, cols: 192, bases: 9, rank: 64 };
    const parameters = factorParameters(problem);
    for (const report of result.groups.filter(isFitted)) {
      const tensors = layers[report.layer]?.experts[report.projection] ?? [];
      const experts = await Promise.all(tensors.map(({ name }) => tensorValues(source, name)));
      const baselines = [
        perExpertSvd(experts, 64, 192, parameters),
        ...[1, 2, 4, 8].map((groups) => groupedSvd(experts, 64, 192, parameters, groups)),
      ];
      for (const baseline of baselines) {
        expect(baseline.parameters).toBeLessThanOrEqual(parameters);
        expect(report.relativeError).toBeLessThan(baseline.relativeError);
      }
    }
  });

  test('what is written verifies', cost, async () => {
    const verified = await verify(TINY_MODEL, out);
    expect(verified.problems).toEqual([]);
    expect(verified.groups).toHaveLength(groups);
  });

  test('the reported error is that of A·f(ΣαB) over the bytes in the file, computed here by hand', cost, async () => {
    const [source, written] = [await openCheckpoint(TINY_MODEL), await openCheckpoint(out)];
    const prefix = 'model.layers.2.mlp.';
    const [B, alpha] = [await tensorValues(written, `${prefix}B_up`), await tensorValues(written, `${prefix}W_up`)];
    let error = 0;
    let norm = 0;
    for (let expert = 0; expert < 32; expert++) {
      const F = Float64Array.from({ length: 64 * 192 }, (_, i) => {
        let s = 0;
        for (let j = 0; j < 9; j++) s += (alpha[expert * 9 + j] as number) * (B[j * 64 * 192 + i] as number);
        return s / (1 + Math.exp(-s));
      });
      const A = await tensorValues(written, `${prefix}experts.${expert}.up_proj.weight`);
      const W = await tensorValues(source, `${prefix}experts.${expert}.up_proj.weight`);
      for (let row = 0; row < 64; row++) {
        for (let col = 0; col < 192; col++) {
          let rebuilt = 0;
          for (let k = 0; k < 64; k++) rebuilt += (A[row * 64 + k] as number) * (F[k * 192 + col] as number);
          const w = W[row * 192 + col] as number;
          error += (w - rebuilt) ** 2;
          norm += w * w;
        }
      }
    }
    const reported = result.groups
      .filter(isFitted)
      .find(({ layer, projection }) => layer === 2 && projection === 'up_proj');
    expect(Math.sqrt(error / norm) / (reported?.relativeError ?? 0)).toBeCloseTo(1, 5);
    expect(error / (32 * 64 * 192) / (reported?.mse ?? 0)).toBeCloseTo(1, 5);
  });

  test('is near the public reference after 10 000 steps', cost, () => {
    const reference = JSON.parse(readFileSync(REFERENCE_CURVES, 'utf8')).final;
    for (const { layer, projection, relativeError } of result.groups.filter(isFitted)) {
      expect(relativeError ** 2).toBeLessThan(1.1 * reference[`layer${layer}.${projection}`]);
    }
  });

  test('tells its plan, its steps, its groups and its bytes', cost, () => {
    const kinds = new Set(seen.map(({ kind }) => kind));
    expect(kinds).toEqual(new Set(['plan', 'phase', 'bytes', 'step', 'fold', 'group']));
    expect(seen.filter(({ kind }) => kind === 'group')).toHaveLength(groups);
  });

  test('done again, it says so and does nothing', cost, async () => {
    const again = await compress(TINY_MODEL, out, options);
    expect(again.already).toBe(true);
    expect(again.groups).toEqual(JSON.parse(readFileSync(join(out, 'mobe.json'), 'utf8')).groups);
  });

  test(
    'asked for something else in the same folder, it refuses, naming the difference, unless forced',
    cost,
    async () => {
      const other = { steps: 3, layers: [0] };
      const refused = compress(TINY_MODEL, out, other);
      await expect(refused).rejects.toThrow('steps 600, now 3');
      await expect(refused).rejects.toThrow(`layers ${options.layers ? '[2]' : 'default'}, now [0]`);
      const forced = `${out}, forced`;
      cpSync(out, forced, { recursive: true });
      expect((await compress(TINY_MODEL, forced, other, { force: true })).groups).toHaveLength(2);
      expect((await verify(TINY_MODEL, forced)).problems).toEqual([]);
    },
  );
});

describe('two ways to one result', () => {
  beforeAll(async () => {
    await compress(TINY_MODEL, at('native'), QUICK);
    await compress(TINY_MODEL, at('hf'), { ...QUICK, format: 'hf' });
    await fitFactors(TINY_MODEL, at('factors'), QUICK);
  });

  test('the same command twice writes the same bytes', async () => {
    await compress(TINY_MODEL, at('native-2'), QUICK);
    expectSameFiles(at('native-2'), at('native'));
  });
  test('fit and export write what compress writes, native', async () => {
    await exportFactors(TINY_MODEL, at('factors'), at('export'), { shardSize: 3e6 });
    expectSameFiles(at('export'), at('native'));
    expect((await verify(TINY_MODEL, at('export'))).problems).toEqual([]);
  });
  test('fit and export write what compress writes, hf', async () => {
    await exportFactors(TINY_MODEL, at('factors'), at('export-hf'), { format: 'hf', shardSize: 3e6 });
    expectSameFiles(at('export-hf'), at('hf'));
    expect((await verify(TINY_MODEL, at('export-hf'))).problems).toEqual([]);
  });
  test('an expanded native checkpoint is the hf one', async () => {
    await expand(at('native'), at('expanded'), { shardSize: 3e6 });
    expectSameFiles(at('expanded'), at('hf'));
    expect((await verify(TINY_MODEL, at('expanded'))).problems).toEqual([]);
  });
  test('the hf config is the source config byte for byte', () => {
    expect(readFileSync(at('hf', 'config.json')).equals(readFileSync(join(TINY_MODEL, 'config.json')))).toBe(true);
  });
  test('the native config says what the reference writes and what it forgets, and keeps 10000.0 a float', () => {
    const text = readFileSync(at('native', 'config.json'), 'utf8');
    expect(JSON.parse(text)).toMatchObject({
      architectures: ['Qwen3MoBEForCausalLM'],
      num_B: 8,
      activation: 'silu',
      mobe: { rank: 64, layers: [0, 1, 2, 3], projections: ['gate_proj', 'up_proj'], solver: 'varpro' },
    });
    expect(text).toContain('"rope_theta": 10000.0');
  });
  test('an independent reader finds every tensor where the header says', () => {
    for (const folder of [at('native'), at('hf'), at('factors')]) {
      for (const file of readdirSync(folder).filter((name) => name.endsWith('.safetensors'))) {
        const reader = readWithNpmSafetensors(readFileSync(join(folder, file)));
        for (const [name, { shape }] of reader.metadata) {
          expect(reader.getTensor(name).byteLength).toBe(2 * shape.reduce((a, b) => a * b, 1));
        }
      }
    }
  });

  test('an interrupted fit keeps what it finished', async () => {
    cpSync(at('factors'), at('factors-2'), { recursive: true });
    rmSync(at('factors-2', 'layer-002.up_proj.safetensors'));
    rmSync(at('factors-2', 'mobe.json'));
    const fitted: string[] = [];
    const onProgress = (progress: Progress) => {
      if (progress.kind === 'group') fitted.push(`${progress.report.layer} ${progress.report.projection}`);
    };
    expect((await fitFactors(TINY_MODEL, at('factors-2'), QUICK, { onProgress })).groups).toHaveLength(8);
    expect(fitted).toEqual(['2 up_proj']);
    expectSameFiles(at('factors-2'), at('factors'));
    await expect(fitFactors(TINY_MODEL, at('factors-2'), { ...QUICK, seed: 9 })).rejects.toThrow(
      errors.OutputNotEmptyError,
    );
  });

  test('factor files of another model are refused', async () => {
    await generateCheckpoint(at('other'), { layers: 4, experts: 32, rows: 64, cols: 192 });
    await expect(exportFactors(at('other'), at('factors'), at('never'))).rejects.toThrow(errors.FactorMismatchError);
    expect(existsSync(at('never'))).toBe(false);
  });

  test('side files are copied, the source README kept aside, other weights left behind', async () => {
    cpSync(TINY_MODEL, at('source'), { recursive: true });
    for (const file of [
      'README.md',
      'LICENSE',
      'modeling_x.py',
      'pytorch_model.bin',
      '.gitattributes',
      'templates/chat.jinja',
    ]) {
      mkdirSync(join(at('source', file), '..'), { recursive: true });
      writeFileSync(at('source', file), file);
    }
    await compress(at('source'), at('copied'), { ...QUICK, layers: [1], steps: 2 });
    for (const [file, content] of [
      ['README.source.md', 'README.md'],
      ['LICENSE', 'LICENSE'],
      ['modeling_x.py', 'modeling_x.py'],
      ['templates/chat.jinja', 'templates/chat.jinja'],
    ] as const) {
      expect(readFileSync(at('copied', file), 'utf8')).toBe(content);
    }
    expect(readFileSync(at('copied', 'README.md'), 'utf8')).toContain('base_model: source');
    for (const file of ['pytorch_model.bin', '.gitattributes']) expect(existsSync(at('copied', file))).toBe(false);
    expect((await verify(at('source'), at('copied'))).problems).toEqual([]);
  });

  describe('verify finds', () => {
    const damaged = (name: string, damage: (folder: string) => void) => {
      const folder = at(`damaged-${name}`);
      cpSync(at('native'), folder, { recursive: true });
      forgetManifest(folder); // otherwise only the manifest would be checked
      damage(folder);
      return verify(TINY_MODEL, folder).then(({ problems }) => problems.join('\n'));
    };
    const flip = (folder: string, tensor: string) => {
      const index = JSON.parse(readFileSync(join(folder, 'model.safetensors.index.json'), 'utf8'));
      const file = join(folder, index.weight_map[tensor]);
      const bytes = readFileSync(file);
      const length = Number(bytes.readBigUInt64LE(0));
      const [start] = JSON.parse(bytes.subarray(8, 8 + length).toString())[tensor].data_offsets;
      const position = 8 + length + start + 1;
      bytes[position] = (bytes[position] as number) ^ 0x40;
      writeFileSync(file, bytes);
    };
    const edit = (folder: string, file: string, from: string, to: string) =>
      writeFileSync(join(folder, file), readFileSync(join(folder, file), 'utf8').replace(from, to));

    test('a flipped bit in a copied tensor', async () => {
      const tensor = 'model.layers.3.mlp.experts.7.down_proj.weight';
      expect(await damaged('copy', (folder) => flip(folder, tensor))).toContain(`"${tensor}"`);
    });
    test.each([
      'model.layers.1.mlp.B_gate',
      'model.layers.1.mlp.W_gate',
      'model.layers.1.mlp.experts.4.gate_proj.weight',
    ])('a flipped bit in %s', async (tensor) =>
      expect(await damaged(tensor, (folder) => flip(folder, tensor))).toContain('layer 1 gate_proj'),
    );
    test('a changed config', async () => {
      expect(await damaged('config', (folder) => edit(folder, 'config.json', '"num_B": 8', '"num_B": 9'))).toContain(
        'num_B',
      );
      expect(
        await damaged('config-2', (folder) => edit(folder, 'config.json', '"head_dim": 32', '"head_dim": 16')),
      ).toContain('head_dim');
    });
    test('a changed or missing side file', async () => {
      expect(await damaged('side', (folder) => edit(folder, 'tokenizer.json', '{', '{ '))).toContain('tokenizer.json');
      expect(await damaged('side-2', (folder) => rmSync(join(folder, 'generation_config.json')))).toContain(
        'generation_config.json',
      );
    });
    test('a wrong total_size', async () => {
      const file = 'model.safetensors.index.json';
      expect(await damaged('index', (folder) => edit(folder, file, '"total_size": 7', '"total_size": 8'))).toContain(
        'total_size',
      );
    });
    test('another source', async () => {
      const { problems } = await verify(at('other'), at('native'));
      expect(problems.join('\n')).toContain('another source');
    });
  });
});
