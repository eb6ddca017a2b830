import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import { differingFiles, differingWeights, relativeError } from '../../fixtures/compare-weights.js';
import { describeFamily, FAMILY_NAMES, type FamilyName } from '../../fixtures/families.js';
import {
  type FamilyOptions,
  type GeneratedFamily,
  generateFamily,
  type KnownWeight,
  TINY,
} from '../../fixtures/generate-family.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { thoroughBut } from '../../fixtures/thorough.js';
import { isFitted } from '../../src/conversion/run-report.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import type { Projection } from '../../src/models/family.js';
import type { RunResult } from '../run-options.js';
import { compress } from './compress.js';
import { expand } from './expand.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { inspect } from './inspect.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const OUTPUT = { shardSize: 20_000, threads: 1 };
const QUICK: CompressOptions = { bases: 3, steps: 4, ...OUTPUT };

/** Dimensions that are not multiples of the block size 128. */
const WIDE = { sizes: { layers: 2, experts: 6, rows: 130, cols: 300 }, block: [128, 128] } as const;

type Row = [label: string, family: FamilyName, options: FamilyOptions];

const LAYOUTS: readonly Row[] = [
  ['qwen3_moe in f16', 'qwen3_moe', { dtype: 'F16' }],
  ['deepseek_v3 in f32', 'deepseek_v3', { dtype: 'F32' }],
  ['qwen3_moe, fused', 'qwen3_moe', { fused: true }],
  ['deepseek_v3, fused, its prediction module too', 'deepseek_v3', { fused: true }],
  ['bailing_moe_v2, fused, in f16', 'bailing_moe_v2', { fused: true, dtype: 'F16' }],
  ['mixtral, fused', 'mixtral', { fused: true }],
  ['multimodal, fused', 'multimodal', { fused: true }],
  ['deepseek_v3 in FP8', 'deepseek_v3', { quantised: 'fp8' }],
  ['deepseek_v3 in FP8, blocks of 128 × 128', 'deepseek_v3', { quantised: 'fp8', ...WIDE }],
  ['kimi_k2 in FP8', 'kimi_k2', { quantised: 'fp8' }],
  ['deepseek_v2 in FP8 of E5M2', 'deepseek_v2', { quantised: 'fp8-e5m2' }],
  ['qwen3_moe in FP8 with a scale a row', 'qwen3_moe', { quantised: 'fp8-channel' }],
  ['bailing_moe_v2 in FP8 with a scale a tensor', 'bailing_moe_v2', { quantised: 'fp8-tensor' }],
  ['kimi_k2 in INT4', 'kimi_k2', { quantised: 'int4' }],
  ['qwen3_moe, some experts in FP8', 'qwen3_moe', { quantised: 'fp8', quantisedOnly: /experts\.[1257]\./ }],
  ['qwen2_moe, some experts in GPTQ', 'qwen2_moe', { quantised: 'gptq', quantisedOnly: /experts\.[1257]\./ }],
  ['mixtral in AWQ', 'mixtral', { quantised: 'awq' }],
  ['multimodal in INT4', 'multimodal', { quantised: 'int4' }],
];

const ROWS: readonly Row[] = [
  ...FAMILY_NAMES.map((family): Row => [family, family, {}]),
  ...LAYOUTS.map(([label, family, options]): Row => [label, family, { sizes: { ...TINY, layers: 2 }, ...options }]),
];

const PROJECTION: Readonly<Record<string, Projection>> = {
  gate_proj: 'gate_proj',
  w1: 'gate_proj',
  up_proj: 'up_proj',
  w3: 'up_proj',
};

/** The group that an expert's weight belongs to; undefined for down_proj and prediction modules. */
function groupOf({ kind, name }: KnownWeight, { sizes }: GeneratedFamily): string | undefined {
  const [, layer, own] = /layers\.(\d+)\..*\.(\w+)\.weight$/.exec(name) ?? [];
  const projection = PROJECTION[own ?? ''];
  const predictor = name.startsWith('mtp.') || Number(layer) >= sizes.layers;
  return kind === 'expert' && projection && !predictor ? `${layer} ${projection}` : undefined;
}

const cost = thoroughBut(
  'qwen3_moe',
  'mixtral',
  'deepseek_v3, fused, its prediction module too',
  'deepseek_v3 in FP8',
  'kimi_k2 in INT4',
  'qwen2_moe, some experts in GPTQ',
);

for (const row of ROWS) describe(row[0], cost(row[0]), () => testFamily(...row));

function testFamily(label: string, family: FamilyName, options: FamilyOptions): void {
  const at = (...path: string[]) => join(root, label.replaceAll(/\W+/g, '-'), ...path);
  const { native } = describeFamily(family, TINY);
  let source: GeneratedFamily;
  let result: RunResult;
  const known = (group: string) => [...source.weights.values()].filter((it) => groupOf(it, source) === group);
  const config = (folder: string) => JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8'));

  beforeAll(async () => {
    source = await generateFamily(at('model'), family, options);
    // Of a quantised source, bf16 results are larger.
    const quick: CompressOptions = { ...QUICK, ...(options.quantised && { dtype: 'bfloat16' }) };
    result = await compress(at('model'), at('hf'), { ...quick, format: 'hf' }, LARGER);
    await fitFactors(at('model'), at('factors'), quick);
    if (native) await compress(at('model'), at('native'), quick, LARGER);
  });

  test('is told apart, its layers, experts and parameters counted', async () => {
    const { sizes, weights, detected, moeLayers } = source;
    const inspection = await inspect(at('model'));
    expect(inspection).toMatchObject({
      family: detected,
      expertLayers: moeLayers,
      hiddenLayers: sizes.layers,
      expertsPerLayer: sizes.experts,
      expertShape: [sizes.rows, sizes.cols],
      obstacle: undefined,
    });
    const all = [...weights.values()];
    const parameters = (some: KnownWeight[]) => some.reduce((sum, { values }) => sum + values.length, 0);
    const counted = (kind: RegExp) =>
      Object.entries(inspection.kinds).reduce(
        (sum, [name, tally]) => sum + (kind.test(name) ? tally.parameters : 0),
        0,
      );
    expect(inspection.total.parameters).toBe(parameters(all));
    expect(counted(/routed experts/)).toBe(parameters(all.filter(({ kind }) => kind === 'expert')));
    expect(counted(/shared experts/)).toBe(parameters(all.filter(({ name }) => /shared_expert/.test(name))));
    const quantised = Object.values(inspection.quantised).reduce((sum, count) => sum + count, 0);
    expect(quantised).toBe(all.filter((weight) => weight.quantised).length);
    expect(result.parametersBefore).toBe(parameters(all));
    expect(result.parametersAfter).toBe(parameters(all));
  });

  test('hf: whatever was not factorised is what it was, decoded where it was quantised', () => {
    const written = readFolder(at('hf'));
    expect(differingWeights(written, source, (weight) => groupOf(weight, source) === undefined)).toEqual([]);
    const names = options.quantised ? source.weights : source.tensors;
    expect([...written.keys()].sort()).toEqual([...names.keys()].sort());
    const dtypes = (tensors: ReadonlyMap<string, { dtype: string }>) =>
      new Set([...tensors.values()].map(({ dtype }) => dtype));
    if (!options.quantised) expect(dtypes(written)).toEqual(dtypes(source.tensors));
    else for (const dtype of dtypes(written)) expect(['BF16', 'F32']).toContain(dtype);
    expect(new Set([...written.values()].map(({ file }) => file)).size).toBeGreaterThan(2);
  });

  test('hf: the config is that of the source without its quantisation', () => {
    const expected = structuredClone(source.config) as { quantization_config?: object; text_config?: object };
    delete expected.quantization_config;
    delete (expected.text_config as { quantization_config?: object } | undefined)?.quantization_config;
    expect(config('hf')).toEqual(expected);
  });

  test('hf: the experts are near what they were, as near as is reported', () => {
    const written = readFolder(at('hf'));
    const groups = result.groups.filter(isFitted);
    expect(groups.map(({ layer, projection }) => `${layer} ${projection}`)).toEqual(
      source.moeLayers.flatMap((layer) => [`${layer} gate_proj`, `${layer} up_proj`]),
    );
    for (const { layer, projection, relativeError: reported } of groups) {
      const own = relativeError(written, known(`${layer} ${projection}`));
      expect(own / reported).toBeCloseTo(1, 3);
      expect(own).toBeLessThan(0.6);
    }
  });

  test('hf: verifies, and fit with export writes the same', async () => {
    expect((await verify(at('model'), at('hf'), { threads: 1 })).problems).toEqual([]);
    await exportFactors(at('model'), at('factors'), at('export'), { format: 'hf', ...OUTPUT }, LARGER);
    expect(differingFiles(at('export'), at('hf'))).toEqual([]);
  });

  if (!native) {
    test('native: refused, with the format that works', async () => {
      const run = compress(at('model'), at('native'), QUICK);
      await expect(run).rejects.toThrow(errors.OptionError);
      await expect(run).rejects.toThrow(`no native form is defined for ${source.detected}. Use --format hf.`);
      expect(existsSync(at('native'))).toBe(false);
    });
    return;
  }

  test('native: factors under their names, all else as it was', async () => {
    const { experts, rows, cols } = source.sizes;
    const written = readFolder(at('native'));
    expect(differingWeights(written, source, (weight) => groupOf(weight, source) === undefined)).toEqual([]);
    const shape = (name: string) => written.get(name)?.shape;
    for (const layer of source.moeLayers) {
      for (const short of ['gate', 'up']) {
        const prefix = `model.layers.${layer}.${family === 'mixtral' ? 'block_sparse_moe' : 'mlp'}.`;
        expect(shape(`${prefix}B_${short}`)).toEqual([3, rows, cols]);
        expect(shape(`${prefix}W_${short}`)).toEqual([experts, 3]);
        for (let expert = 0; expert < experts; expert++)
          expect(shape(`${prefix}experts.${expert}.${short}_proj.weight`)).toEqual([rows, rows]);
      }
    }
    const added = 4 * source.moeLayers.length;
    if (!options.fused) expect(written.size).toBe(source.weights.size + added);
    const { num_B, mobe, model_type, auto_map } = config('native');
    expect({ num_B, model_type }).toEqual({ num_B: 3, model_type: 'mobe' });
    expect(mobe.source_model_type).toBe(source.config.model_type);
    expect(mobe.factors).toEqual([
      {
        layers: source.moeLayers,
        projections: ['gate_proj', 'up_proj'],
        ...{ bases: 3, rank: rows, groups: 1, activation: 'silu' },
      },
    ]);
    expect(Object.keys(auto_map)).toEqual(['AutoConfig', 'AutoModelForCausalLM']);
    expect((await verify(at('model'), at('native'), { threads: 1 })).problems).toEqual([]);
  });

  test('native: expanded, it is the hf checkpoint; exported, it is the same', async () => {
    await expand(at('native'), at('expanded'), OUTPUT);
    expect((await verify(at('model'), at('expanded'), { threads: 1 })).problems).toEqual([]);
    expect(differingFiles(at('expanded'), at('hf'))).toEqual([]);
    await exportFactors(at('model'), at('factors'), at('export-native'), OUTPUT, LARGER);
    expect(differingFiles(at('export-native'), at('native'))).toEqual([]);
  });
}
