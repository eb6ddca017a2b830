import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { weightOf } from '../../fixtures/compare-weights.js';
import { type GeneratedFamily, generateFamily, TINY } from '../../fixtures/generate-family.js';
import { type HeldLayer, memoryRecord, randomLayer } from '../../fixtures/memory-record.js';
import { plainOutputLoss } from '../../fixtures/plain-output-loss.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { watchedRecord } from '../../fixtures/watched-record.js';
import type { CalibrationRecord } from '../../src/calibration/record.js';
import { type Checkpoint, fingerprint, openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { type FactorFile, openFactorFolder } from '../../src/conversion/factor-files.js';
import {
  BudgetTooSmallError,
  DamagedRecordError,
  FactorMismatchError,
  InterruptedError,
  OtherRecordError,
  UnsupportedExpertsError,
} from '../../src/errors.js';
import { PROJECTIONS, type Projection } from '../../src/models/family.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { measureSensitivities, type SensitivityRequest } from './sensitivities.js';

const root = temporaryFolder();
const at = (name: string) => join(root, name);
const SIZES = { ...TINY, layers: 2 };
const TOKENS = 90;
const SETTINGS = { engine: 'onnx-cpu', threads: 1, maxMemory: 2 ** 30, seed: 0 } as const;

const layers = [0, 1].map((layer) =>
  randomLayer(layer, { tokens: TOKENS, width: SIZES.cols, experts: SIZES.experts, expertsPerToken: 3 }),
);
let generated: GeneratedFamily;
let source: Checkpoint;
let probes: FactorFile[];
let record: CalibrationRecord;
/** The loss of each projection, plainly in f64. */
const reference = new Map<string, number>();

const weights = (tensors: GeneratedFamily['tensors'], layer: number, expert: number, projection: Projection) => {
  const known = generated.weights.get(`model.layers.${layer}.mlp.experts.${expert}.${projection}.weight`);
  return weightOf(tensors, known as NonNullable<typeof known>) as Float32Array;
};

function expertOutput(x: Float32Array, [gate, up, down]: readonly Float32Array[]): number[] {
  const { rows, cols } = SIZES;
  const dot = (matrix: Float32Array, row: number, vector: ArrayLike<number>): number => {
    let sum = 0;
    for (let i = 0; i < vector.length; i++) sum += (matrix[row * vector.length + i] as number) * (vector[i] as number);
    return sum;
  };
  const inner = Array.from({ length: rows }, (_, row) => {
    const g = dot(gate as Float32Array, row, x);
    return (g / (1 + Math.exp(-g))) * dot(up as Float32Array, row, x);
  });
  return Array.from({ length: cols }, (_, row) => dot(down as Float32Array, row, inner));
}

function plainLoss(rebuilt: GeneratedFamily['tensors'], held: HeldLayer, replaced: Projection): number {
  const { cols } = SIZES;
  const { layer, input, experts, expertsPerToken: k } = held;
  const outputs: number[][] = [];
  const changes: number[][] = [];
  for (let token = 0; token < TOKENS; token++) {
    const x = input.subarray(token * cols, (token + 1) * cols);
    const of = (tensors: (it: Projection) => GeneratedFamily['tensors']): number[] => {
      const sum = new Array<number>(cols).fill(0);
      for (let i = token * k; i < (token + 1) * k; i++) {
        const own = PROJECTIONS.map((it) => weights(tensors(it), layer, experts[i] as number, it));
        for (const [j, value] of expertOutput(x, own).entries())
          sum[j] = (sum[j] as number) + (held.weights[i] as number) * value;
      }
      return sum;
    };
    const before = of(() => generated.tensors);
    const after = of((it) => (it === replaced ? rebuilt : generated.tensors));
    outputs.push(before);
    changes.push(after.map((it, j) => it - (before[j] as number)));
  }
  return plainOutputLoss(outputs, changes, held.scale);
}

const measure = (changes: Partial<SensitivityRequest> = {}) =>
  measureSensitivities({ source, record, probes, kind: 'local', settings: SETTINGS, ...changes });

beforeAll(async () => {
  generated = await generateFamily(at('model'), 'qwen3_moe', { sizes: SIZES, dtype: 'F32' });
  source = await openCheckpoint(at('model'));
  record = memoryRecord({ sourceFingerprint: await fingerprint(source), sequences: 9, length: 10 }, layers);
  for (const groups of [1, 2])
    await fitFactors(at('model'), at(`probes-${groups}`), {
      bases: 2,
      steps: 3,
      groups,
      projections: [...PROJECTIONS],
      threads: 1,
    });
  probes = await openFactorFolder(at('probes-1'));
  await exportFactors(at('model'), at('probes-1'), at('rebuilt'), { format: 'hf' });
  const rebuilt = readFolder(at('rebuilt'));
  for (const held of layers)
    for (const projection of PROJECTIONS)
      reference.set(`${held.layer} ${projection}`, plainLoss(rebuilt, held, projection));
});

afterAll(() => source.files.close());

/** Whether all losses agree with the reference to f32 rounding. */
function expectReference(found: ReadonlyMap<string, number>, wanted: ReadonlyMap<string, number> = reference): void {
  expect([...found.keys()].sort()).toEqual([...wanted.keys()].sort());
  for (const [key, value] of wanted) expect(Math.abs((found.get(key) as number) / value - 1)).toBeLessThan(1e-4);
}

test('the loss of each projection is that of plain arithmetic', async () => {
  expectReference(await measure());
  expect(Math.max(...reference.values()) / Math.min(...reference.values())).toBeGreaterThan(1.1);
});

test('a sample of the tokens is near', async () => {
  const found = await measure({ settings: { ...SETTINGS, tokens: 45 } });
  for (const [key, value] of reference) {
    const ratio = (found.get(key) as number) / value;
    expect(ratio).not.toBe(1);
    expect(Math.abs(Math.log(ratio))).toBeLessThan(0.5);
  }
});

test('only projections with a probe are measured', async () => {
  const some = probes.filter(({ metadata: { report } }) => report.layer === 1 && report.projection !== 'up_proj');
  const wanted = new Map([...reference].filter(([key]) => ['1 gate_proj', '1 down_proj'].includes(key)));
  expectReference(await measure({ probes: some }), wanted);
});

test('the groups of a projection are one probe', async () => {
  const parts = await openFactorFolder(at('probes-2'));
  await exportFactors(at('model'), at('probes-2'), at('rebuilt-2'), { format: 'hf' });
  const rebuilt = readFolder(at('rebuilt-2'));
  const found = await measure({ probes: parts });
  const wanted = plainLoss(rebuilt, layers[1] as HeldLayer, 'down_proj');
  expect(Math.abs((found.get('1 down_proj') as number) / wanted - 1)).toBeLessThan(1e-4);
  const incomplete = parts.filter(({ metadata: { report } }) => report.layer !== 1 || report.group !== 0);
  await expect(measure({ probes: incomplete })).rejects.toThrow(FactorMismatchError);
});

test('in little memory the projections are measured one after the other', async () => {
  const refused = await measure({ settings: { ...SETTINGS, maxMemory: 2 ** 20 } }).catch((error: Error) => error);
  expect(refused).toBeInstanceOf(BudgetTooSmallError);
  const maxMemory = Number.parseInt((refused as BudgetTooSmallError).smallest, 10) * 2 ** 20;
  const progress: number[] = [];
  expectReference(await measure({ settings: { ...SETTINGS, maxMemory }, onProgress: (done) => progress.push(done) }));
  expect(progress).toEqual([...progress].sort((a, b) => a - b));
  expect(progress.at(-1)).toBe(2);
});

describe('an interrupted measurement', () => {
  test('goes on after the last finished layer, with the same result', async () => {
    const abort = new AbortController();
    const workspace = at('workspace');
    const interrupted = measure({ workspace, signal: abort.signal, onProgress: (done) => done >= 1 && abort.abort() });
    await expect(interrupted).rejects.toThrow(InterruptedError);
    const opened: number[] = [];
    expect(await measure({ workspace, record: watchedRecord(record, opened) })).toEqual(await measure());
    expect(opened).toEqual([1]);
  });

  test('starts again with other probes, tokens or seeds', async () => {
    const workspace = at('workspace-2');
    const first = await measure({ workspace, settings: { ...SETTINGS, tokens: 45 } });
    expect(await measure({ workspace, settings: { ...SETTINGS, tokens: 45, seed: 1 } })).not.toEqual(first);
    expectReference(await measure({ workspace }));
  });
});

test('experts that compute otherwise are refused', async () => {
  const other = { ...source, config: { ...source.config, hidden_act: 'gelu' } };
  await expect(measure({ source: other })).rejects.toThrow(UnsupportedExpertsError);
  const biased = { ...source, config: { ...source.config, model_type: 'gpt_oss' } };
  await expect(measure({ source: biased })).rejects.toThrow(/biases/);
});

test('a record of another model or shape is refused', async () => {
  const other = memoryRecord({ ...record.facts, sourceFingerprint: 'other' }, layers);
  await expect(measure({ record: other })).rejects.toThrow(OtherRecordError);
  const [first, second] = layers as [HeldLayer, HeldLayer];
  const wrong = memoryRecord(record.facts, [first, { ...second, experts: second.experts.map((it) => it + 2) }]);
  await expect(measure({ record: wrong })).rejects.toThrow(DamagedRecordError);
});
