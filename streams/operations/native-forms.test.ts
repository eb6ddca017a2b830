import { copyFileSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { differingFiles, differingWeights } from '../../fixtures/compare-weights.js';
import { type GeneratedFamily, generateFamily, TINY } from '../../fixtures/generate-family.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import * as errors from '../../src/errors.js';
import { compress } from './compress.js';
import { expand } from './expand.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { inspect } from './inspect.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const OUTPUT = { shardSize: 20_000, threads: 1 };
const QUICK = { bases: 3, steps: 4, ...OUTPUT };
const configOf = (folder: string) => JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8'));
const problemsOf = async (result: string) => (await verify(at('model'), at(result), { threads: 1 })).problems;
let source: GeneratedFamily;

beforeAll(async () => {
  source = await generateFamily(at('model'), 'mixtral', { sizes: { ...TINY, layers: 2 } });
});

test('a native checkpoint is not converted again', async () => {
  await compress(at('model'), at('native'), QUICK);
  const run = compress(at('native'), at('twice'), QUICK);
  await expect(run).rejects.toThrow(errors.NativeCheckpointError);
  await expect(run).rejects.toThrow('mobe expand');
  expect(existsSync(at('twice'))).toBe(false);
});

test('projections and layers of different sizes are listed, and the whole is expanded', async () => {
  await fitFactors(at('model'), at('factors'), { ...QUICK, layers: [0] });
  await fitFactors(at('model'), at('others'), { ...QUICK, layers: [1], bases: 2, rank: 8, activation: 'tanh' });
  const up = 'layer-001.up_proj.safetensors';
  copyFileSync(at('others', up), at('factors', up));
  await exportFactors(at('model'), at('factors'), at('uneven'), OUTPUT);
  const { num_B, activation, mobe } = configOf('uneven');
  expect({ num_B, activation }).toEqual({});
  expect(mobe).toMatchObject({ format_version: 2, prefix: 'model.layers.{layer}.block_sparse_moe.' });
  expect(mobe.factors).toEqual([
    {
      layers: [0],
      projections: ['gate_proj', 'up_proj'],
      ...{ bases: 3, rank: source.sizes.rows, groups: 1, activation: 'silu' },
    },
    { layers: [1], projections: ['up_proj'], bases: 2, rank: 8, groups: 1, activation: 'tanh' },
  ]);
  const names = [...readFolder(at('uneven')).keys()].filter((name) => /layers\.1\..*(B_|experts\.0\.)/.test(name));
  expect(names.map((name) => name.split('moe.')[1]).sort()).toEqual([
    'B_up',
    'experts.0.up_proj.weight',
    'experts.0.w1.weight',
    'experts.0.w2.weight',
  ]);
  expect(await problemsOf('uneven')).toEqual([]);
  await expand(at('uneven'), at('uneven-expanded'), OUTPUT);
  await exportFactors(at('model'), at('factors'), at('uneven-hf'), { ...OUTPUT, format: 'hf' });
  expect(differingFiles(at('uneven-expanded'), at('uneven-hf'))).toEqual([]);
});

test('the factors of --method svd are two matrices for each expert', async () => {
  const options = { ...OUTPUT, method: 'svd', rank: 5 };
  await compress(at('model'), at('svd'), options);
  const { experts, rows, cols } = source.sizes;
  const written = readFolder(at('svd'));
  for (const projection of ['gate_proj', 'up_proj']) {
    const name = `model.layers.1.block_sparse_moe.experts.${experts - 1}.${projection}`;
    expect(written.get(`${name}.A`)?.shape).toEqual([rows, 5]);
    expect(written.get(`${name}.V`)?.shape).toEqual([5, cols]);
  }
  expect(differingWeights(written, source, ({ kind }) => kind !== 'expert')).toEqual([]);
  expect(configOf('svd')).toMatchObject({
    model_type: 'mobe',
    mobe: { method: 'svd', factors: [{ layers: [0, 1], projections: ['gate_proj', 'up_proj'], rank: 5 }] },
  });
  expect(configOf('svd')).not.toHaveProperty('num_B');
  expect(await inspect(at('svd'))).toMatchObject({ native: true, modelType: 'mixtral', expertsPerLayer: experts });
  expect(await problemsOf('svd')).toEqual([]);
  await expand(at('svd'), at('svd-expanded'), OUTPUT);
  await compress(at('model'), at('svd-hf'), { ...options, format: 'hf' });
  expect(differingFiles(at('svd-expanded'), at('svd-hf'))).toEqual([]);
});

test('an svd expert without factors is missed', async () => {
  const run = expand(at('svd'), at('never'), OUTPUT);
  await run.then(() => rmSync(at('never'), { recursive: true }));
  const name = 'model.layers.1.block_sparse_moe.experts.1.up_proj.';
  const shard = readFolder(at('svd')).get(`${name}A`)?.file as string;
  const renamed = readFileSync(at('svd', shard)).toString('latin1').replaceAll(`${name}A`, `${name}X`);
  writeFileSync(at('svd', shard), renamed, 'latin1');
  await expect(expand(at('svd'), at('never'), OUTPUT)).rejects.toThrow(errors.MissingExpertError);
});

describe('format_version 1', () => {
  beforeAll(async () => {
    await generateFamily(at('v1-model'), 'qwen3_moe', { sizes: { ...TINY, layers: 2 } });
    await compress(at('v1-model'), at('v1'), QUICK);
    // The config is changed to the one that format_version 1 had.
    const { model_type: _, mobe, ...config } = configOf('v1');
    const { source_model_type: model_type, source_fingerprint, factors } = mobe;
    const { layers, projections, rank, groups } = factors[0];
    const architectures = ['Qwen3MoeForCausalLM'];
    const facts = { format_version: 1, rank, groups, layers, projections, solver: 'varpro' };
    const origin = { source_architectures: architectures, source_auto_map: null, source_fingerprint };
    writeFileSync(
      at('v1', 'config.json'),
      JSON.stringify({ ...config, model_type, architectures: ['Qwen3MoBEForCausalLM'], mobe: { ...facts, ...origin } }),
    );
    for (const name of ['modeling_qwen3_mobe.py', 'mobe_experts.py'])
      copyFileSync(at('v1', 'modeling_mobe.py'), at('v1', name));
    rmSync(at('v1', 'modeling_mobe.py'));
  });

  test('is told and expanded', async () => {
    expect(await inspect(at('v1'))).toMatchObject({ native: true, modelType: 'qwen3_moe' });
    await expand(at('v1'), at('v1-expanded'), OUTPUT);
    expect(existsSync(at('v1-expanded', 'mobe_experts.py'))).toBe(false);
    await compress(at('v1-model'), at('v1-hf'), { ...QUICK, format: 'hf' });
    const [expanded, hf] = [readFolder(at('v1-expanded')), readFolder(at('v1-hf'))];
    expect([...expanded.keys()]).toEqual([...hf.keys()]);
    for (const [name, { bytes }] of hf) expect(Buffer.compare(expanded.get(name)?.bytes as Buffer, bytes)).toBe(0);
    expect(configOf('v1-expanded')).toEqual(configOf('v1-model'));
  });
});
