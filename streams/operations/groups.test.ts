import { cpSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import { differingFiles, differingWeights, relativeError, weightOf } from '../../fixtures/compare-weights.js';
import { readFloats, roundToBfloat16 } from '../../fixtures/dequantise.js';
import { type FamilyOptions, type GeneratedFamily, generateFamily, TINY } from '../../fixtures/generate-family.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { type FoundTensor, readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { thoroughBut } from '../../fixtures/thorough.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { planCompression } from '../../src/conversion/compression-plan.js';
import { type GroupPlan, sourceBytes } from '../../src/conversion/group-plan.js';
import { isFitted } from '../../src/conversion/run-report.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import type { RunResult } from '../run-options.js';
import { compress } from './compress.js';
import { expand } from './expand.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { inspect } from './inspect.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const OUTPUT = { shardSize: 20_000, threads: 1 };
const SIZES = { ...TINY, layers: 2 };
const PROJECTIONS = ['gate_proj', 'up_proj', 'down_proj'] as const;
const QUICK: CompressOptions = { bases: 4, steps: 4, projections: [...PROJECTIONS], ...OUTPUT };

/** Rebuilds A · silu(Σ α B) in f64 from the tensors of a native checkpoint; for down_proj this is the transposed weight. */
function rebuild(
  written: ReadonlyMap<string, FoundTensor>,
  layer: number,
  projection: string,
  expert: number,
  groups: number,
): Float32Array {
  const values = (name: string) => {
    const tensor = written.get(`model.layers.${layer}.mlp.${name}`);
    if (!tensor) throw new RangeError(`no ${name}`);
    return { shape: tensor.shape, values: readFloats(tensor.dtype, tensor.bytes) };
  };
  const size = SIZES.experts / groups;
  const suffix = groups === 1 ? '' : `_${Math.floor(expert / size)}`;
  const short = projection.replace('_proj', '');
  const A = values(`experts.${expert}.${projection}.weight`);
  const B = values(`B_${short}${suffix}`);
  const alpha = values(`W_${short}${suffix}`);
  const [bases, rank, cols] = B.shape as [number, number, number];
  const F = Float64Array.from({ length: rank * cols }, (_, i) => {
    let sum = 0;
    for (let j = 0; j < bases; j++)
      sum += (alpha.values[(expert % size) * bases + j] as number) * (B.values[j * rank * cols + i] as number);
    return sum / (1 + Math.exp(-sum));
  });
  const rows = A.shape[0] as number;
  const weight = new Float32Array(rows * cols);
  for (let row = 0; row < rows; row++)
    for (let col = 0; col < cols; col++) {
      let sum = 0;
      for (let k = 0; k < rank; k++) sum += (A.values[row * rank + k] as number) * (F[k * cols + col] as number);
      weight[projection === 'down_proj' ? col * rows + row : row * cols + col] = sum;
    }
  return weight;
}

const LAYOUTS: ReadonlyArray<[groups: number, layout: string, family: FamilyOptions]> = [
  [1, 'of separate experts', {}],
  [2, 'of separate experts', {}],
  [4, 'of separate experts', {}],
  [2, 'of fused experts', { fused: true }],
  [2, 'of experts in FP8', { quantised: 'fp8' }],
];

const cost = thoroughBut('2 of separate experts', '2 of experts in FP8');

for (const row of LAYOUTS)
  describe(`all three projections in ${row[0]} group(s) ${row[1]}`, cost(`${row[0]} ${row[1]}`), () =>
    testGroups(...row),
  );

function testGroups(groups: number, layout: string, family: FamilyOptions): void {
  const at = (...path: string[]) => join(root, `${groups} ${layout}`, ...path);
  // Of a quantised source, bf16 results are larger.
  const options: CompressOptions = { ...QUICK, groups, ...(family.quantised && { dtype: 'bfloat16' }) };
  let source: GeneratedFamily;
  let result: RunResult;

  beforeAll(async () => {
    source = await generateFamily(at('model'), 'qwen3_moe', { sizes: SIZES, ...family });
    result = await compress(at('model'), at('native'), options, LARGER);
    await compress(at('model'), at('hf'), { ...options, format: 'hf' }, LARGER);
    await fitFactors(at('model'), at('factors'), options);
  });

  const experts = (layer: number, projection: string) =>
    [...source.weights.values()].filter(
      ({ kind, name }) => kind === 'expert' && name.includes(`layers.${layer}.`) && name.includes(projection),
    );

  test('bases and coefficients are named by group, with an equal share each', () => {
    const written = readFolder(at('native'));
    const { rows, cols, experts: n } = SIZES;
    const named = [...written.keys()].filter((name) => /\.mlp\.[BW]_/.test(name)).sort();
    const wanted = [0, 1].flatMap((layer) =>
      ['B', 'W'].flatMap((letter) =>
        ['down', 'gate', 'up'].flatMap((short) =>
          Array.from(
            { length: groups },
            (_, group) => `model.layers.${layer}.mlp.${letter}_${short}${groups === 1 ? '' : `_${group}`}`,
          ),
        ),
      ),
    );
    expect(named).toEqual(wanted.sort());
    for (const name of named)
      expect(written.get(name)?.shape).toEqual(/B_/.test(name) ? [4 / groups, rows, cols] : [n / groups, 4 / groups]);
    for (const projection of PROJECTIONS)
      expect(written.get(`model.layers.1.mlp.experts.7.${projection}.weight`)?.shape).toEqual([rows, rows]);
    const { num_B, mobe } = JSON.parse(readFileSync(at('native', 'config.json'), 'utf8'));
    expect({ num_B, mobe }).toMatchObject({
      num_B: 4,
      mobe: { factors: [{ bases: 4, groups, rank: rows, projections: PROJECTIONS }] },
    });
    expect(differingWeights(written, source, ({ kind }) => kind !== 'expert')).toEqual([]);
  });

  test('inspect counts the native checkpoint as the run did', async () => {
    const inspection = await inspect(at('native'));
    expect(inspection).toMatchObject({
      family: 'native MoBE',
      expertLayers: [0, 1],
      expertsPerLayer: SIZES.experts,
      total: { parameters: result.parametersAfter, bytes: result.bytesAfter },
      obstacle: undefined,
    });
    expect(inspection.expertShape).toEqual([SIZES.rows, SIZES.cols]);
    const factors = 2 * 3 * (4 * SIZES.rows * SIZES.cols + (SIZES.experts * 4) / groups);
    expect(inspection.kinds['MoBE bases and coefficients']?.parameters).toBe(factors);
  });

  test('the weights computed by hand from the native checkpoint are those of the hf one', () => {
    const [native, hf] = [readFolder(at('native')), readFolder(at('hf'))];
    for (const layer of [0, 1]) {
      for (const projection of PROJECTIONS) {
        for (const [expert, weight] of experts(layer, projection).entries()) {
          const byHand = roundToBfloat16(rebuild(native, layer, projection, expert, groups));
          const written = weightOf(hf, weight) as Float32Array;
          // A sum in another order may round to the next bf16 number.
          const far = byHand.filter(
            (value, i) => Math.abs(value - (written[i] as number)) > Math.abs(value) / 120 + 1e-6,
          );
          expect([...far], weight.name).toEqual([]);
        }
      }
    }
  });

  test('every group has an error of its own, and σ is that of all the experts of its layer and projection', () => {
    const fitted = result.groups.filter(isFitted);
    expect(fitted).toHaveLength(2 * 3 * groups);
    const hf = readFolder(at('hf'));
    for (const { layer, projection, group, sigma, relativeError: reported } of fitted) {
      const all = experts(layer, projection);
      const values = all.flatMap((weight) => [...weight.values]);
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1);
      expect(sigma / Math.sqrt(variance)).toBeCloseTo(1, 6);
      const size = SIZES.experts / groups;
      const own = relativeError(hf, all.slice(group * size, (group + 1) * size));
      expect(own / reported).toBeCloseTo(1, 2);
      expect(own).toBeLessThan(0.7);
    }
    expect(new Set(fitted.map(({ relativeError: it }) => it)).size).toBe(fitted.length);
  });

  test('both outputs verify; the native one expands to the hf one; fit with export writes both', async () => {
    for (const folder of ['native', 'hf'])
      expect((await verify(at('model'), at(folder), { threads: 1 })).problems).toEqual([]);
    await expand(at('native'), at('expanded'), OUTPUT);
    const [expanded, hf] = [readFolder(at('expanded')), readFolder(at('hf'))];
    for (const weight of source.weights.values()) expect(weightOf(expanded, weight)).toEqual(weightOf(hf, weight));
    expect(differingFiles(at('expanded'), at('hf'))).toEqual([]);
    expect((await verify(at('model'), at('expanded'), { threads: 1 })).problems).toEqual([]);
    await exportFactors(at('model'), at('factors'), at('export'), OUTPUT, LARGER);
    expect(differingFiles(at('export'), at('native'))).toEqual([]);
    await exportFactors(at('model'), at('factors'), at('export-hf'), { ...OUTPUT, format: 'hf' }, LARGER);
    expect(differingFiles(at('export-hf'), at('hf'))).toEqual([]);
  });

  if (groups === 1) return;
  const lost = `layer-001.up_proj.group-${groups - 1}.safetensors`;

  test('a fit that lost one group goes on to the same bytes', async () => {
    cpSync(at('factors'), at('resumed'), { recursive: true });
    rmSync(at('resumed', lost));
    const fitted: unknown[] = [];
    await fitFactors(at('model'), at('resumed'), options, {
      onProgress: (it) => it.kind === 'group' && fitted.push(it.report),
    });
    expect(fitted).toMatchObject([{ layer: 1, projection: 'up_proj', group: groups - 1 }]);
    expect(differingFiles(at('resumed'), at('factors'))).toEqual([]);
  });

  test('an incomplete set of factor files makes no native checkpoint, but an hf one that keeps those experts', async () => {
    cpSync(at('factors'), at('incomplete'), { recursive: true });
    rmSync(at('incomplete', lost));
    const run = exportFactors(at('model'), at('incomplete'), at('never'), OUTPUT, LARGER);
    await expect(run).rejects.toThrow(errors.UnevenFactorsError);
    await expect(run).rejects.toThrow(`layer 1 up_proj group ${groups - 1} is missing`);
    await exportFactors(at('model'), at('incomplete'), at('partial'), { ...OUTPUT, format: 'hf' }, LARGER);
    const first = SIZES.experts - SIZES.experts / groups;
    const kept = new Set(experts(1, 'up_proj').slice(first));
    expect(kept.size).toBe(SIZES.experts / groups);
    expect(differingWeights(readFolder(at('partial')), source, (it) => it.kind !== 'expert' || kept.has(it))).toEqual(
      [],
    );
    expect((await verify(at('model'), at('partial'), { threads: 1 })).problems).toEqual([]);
  });
}

describe('refused:', () => {
  const plan = async (options: CompressOptions) => {
    const folder = join(root, 'refused');
    rmSync(folder, { recursive: true, force: true });
    await generateFamily(folder, 'qwen3_moe', { sizes: SIZES });
    return planCompression(await openCheckpoint(folder), { engine: 'onnx-cpu', ...options });
  };
  test('experts that cannot be cut into equal groups', async () => {
    await expect(plan({ groups: 3, bases: 3 })).rejects.toThrow(errors.OptionError);
    await expect(plan({ groups: 3, bases: 3 })).rejects.toThrow('--groups: the 8 experts of a layer');
  });
  test('bases that cannot be shared equally', async () => {
    await expect(plan({ groups: 2, bases: 3 })).rejects.toThrow('--groups: the 3 bases');
  });
  test('more groups than bases', async () => {
    await expect(plan({ groups: 4, bases: 2 })).rejects.toThrow('--groups: the 2 bases');
  });
  test('but a share to keep picks bases that can be', async () => {
    const { groups } = await plan({ groups: 4, keep: 0.95 });
    expect(groups).toHaveLength(2 * 2 * 4);
    for (const { problem } of groups) expect(problem).toMatchObject({ experts: 2, bases: 1 });
  });
});

test('parts of a projection follow one another, and wait for no memory that they hold', async () => {
  const options: CompressOptions = { bases: 8, groups: 8, steps: 1, layers: [0], threads: 1 };
  const { memory, groups } = await planCompression(await openCheckpoint(TINY_MODEL), options);
  expect(memory.holdParts).toBe(true);
  // The experts of gate_proj and up_proj alternate in the shard, but all parts of one come before those of the other.
  expect(groups.map(({ projection }) => projection)).toEqual([
    ...Array(8).fill('gate_proj'),
    ...Array(8).fill('up_proj'),
  ]);
  expect(memory.groupBytes / sourceBytes(groups[0] as GroupPlan)).toBe(8);
  const run = await compress(TINY_MODEL, join(root, 'alternating'), options);
  expect(run.groups).toHaveLength(16);
});
