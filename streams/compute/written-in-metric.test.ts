/** Weights that are written in a quantised encoding: with a metric, rounding minds it. */
import { beforeAll, describe, expect, test } from 'vitest';
import { flat, positiveDefinite } from '../../fixtures/metric-oracle.js';
import { encodeFloats } from '../../src/checkpoint/codec.js';
import { encodeMatrix } from '../../src/checkpoint/encode-matrix.js';
import { type StoredEncoding, storedBytes } from '../../src/checkpoint/encoding.js';
import { decodePart } from '../../src/checkpoint/stored-matrix.js';
import { createEngine } from '../../src/engine/create-engine.js';
import type { Engine } from '../../src/engine/engine.js';
import { createRandom } from '../../src/linalg/random.js';
import type { MetricForm } from '../../src/methods/method.js';
import { type ExpertOutput, type FitJob, runJob } from './job.js';
import { joinedBytes } from './written-weights.js';

const EXPERTS = 2;
const [p, d] = [24, 64];
const random = createRandom(3);
const matrix = (): Float32Array => Float32Array.from({ length: p * d }, () => random.normal());
/** As stored: floats. */
const experts = Array.from({ length: EXPERTS }, () => encodeFloats('F32', matrix()));

const codes = (
  dtype: 'F8_E4M3' | 'I8',
  scaleDtype: 'F32' | 'BF16' | 'F8_E8M0',
  blockRows: number,
  blockCols: number,
): StoredEncoding => ({ kind: 'codes', dtype, scaleDtype, blockRows, blockCols });

const ENCODINGS: ReadonlyArray<readonly [string, StoredEncoding]> = [
  ['FP8 in blocks, the last ones smaller', codes('F8_E4M3', 'F32', 10, 20)],
  ['FP8 with one scale', codes('F8_E4M3', 'F32', d, d)],
  ['MXFP8', codes('F8_E4M3', 'F8_E8M0', 1, 16)],
  ['INT8 with a scale a row', codes('I8', 'BF16', 1, d)],
  ['INT4', { kind: 'packed', bits: 4, scaleDtype: 'BF16', groupSize: 16, zeroRows: 0, reordered: false }],
  ['MXFP4', { kind: 'fp4', scaleDtype: 'F8_E8M0', groupSize: 16, matrixScale: 'none' }],
];

/** The matrices of an expert's metric, and how a job is told of them. */
interface Weighing {
  readonly form: MetricForm;
  /** Those of one expert, as a job receives them. */
  readonly numbers: Float32Array;
  /** The covariance of its inputs, (size, size). */
  readonly gram: Float32Array;
}

function fullMetric(transposed: boolean): Weighing {
  const gram = flat(positiveDefinite(transposed ? p : d, 1e3));
  const matrix = { form: 'full', shared: false } as const;
  if (transposed) return { form: { rows: matrix }, numbers: gram, gram };
  const neurons = Float32Array.from({ length: p }, () => 0.5 + random.uniform());
  const form = { rows: { form: 'diagonal', shared: false } as const, columns: matrix };
  return { form, numbers: Float32Array.of(...neurons, ...gram), gram };
}

/** c·I + ZZᵀ */
function lowRankMetric(transposed: boolean): Weighing {
  const [size, rank, c] = [transposed ? p : d, 5, 0.25];
  const Z = Float32Array.from({ length: size * rank }, () => random.normal());
  const gram = Float32Array.from({ length: size * size }, (_, at) => {
    const [i, j] = [Math.floor(at / size), at % size];
    let sum = i === j ? c : 0;
    for (let k = 0; k < rank; k++) sum += (Z[i * rank + k] as number) * (Z[j * rank + k] as number);
    return sum;
  });
  const matrix = { form: 'low-rank', rank, shared: false } as const;
  return { form: transposed ? { rows: matrix } : { columns: matrix }, numbers: Float32Array.of(...Z, c), gram };
}

let engine: Engine;
beforeAll(async () => {
  engine = await createEngine('onnx-cpu', { threads: 1 });
});

/** Rounds the experts. Their factors are SVDs of full rank, which no metric changes. */
async function written(encoding: StoredEncoding, transposed: boolean, weighing?: Weighing): Promise<ExpertOutput[]> {
  const [rows, cols] = transposed ? [d, p] : [p, d];
  const job: FitJob = {
    method: 'svd',
    problem: { experts: EXPERTS, rows: p, cols: d, rank: p } as FitJob['problem'],
    format: { rows, cols, transposed },
    encodings: [{ kind: 'float', dtype: 'F32' }, encoding],
    dtype: 'F32',
    written: 'weights',
    solver: 'svd',
    options: { steps: 1, batchExperts: 1, holdTargets: true, seed: 0 },
    ...(weighing && { metric: { form: weighing.form, fit: true } }),
    label: 'layer 0',
    tensors: experts.map((_, i) => ({ name: `experts.${i}`, file: 'model.safetensors', encoding: 0, written: 1 })),
    firstExpert: 0,
  };
  const metric = weighing && experts.map(() => encodeFloats('F32', weighing.numbers));
  const outputs: ExpertOutput[] = [];
  for await (const output of runJob(engine, job, { experts, ...(metric && { metric }) }))
    if (output.kind === 'expert') outputs.push(output);
  return outputs;
}

function valuesOf(encoding: StoredEncoding, transposed: boolean, { tensors }: ExpertOutput): Float32Array {
  const [rows, cols] = transposed ? [d, p] : [p, d];
  const values = new Float32Array(rows * cols);
  decodePart({ encoding, rows, cols }, joinedBytes(tensors), { first: 0, count: rows }, values);
  return values;
}

/** tr(E·G·Eᵀ) of all experts. */
function errorIn(gram: Float32Array, all: readonly Float32Array[]): number {
  const size = Math.sqrt(gram.length);
  let sum = 0;
  for (const [expert, values] of all.entries()) {
    const stored = new Float32Array((experts[expert] as Uint8Array<ArrayBuffer>).buffer);
    const E = values.map((value, i) => value - (stored[i] as number));
    for (let row = 0; row < E.length; row += size)
      for (let i = 0; i < size; i++)
        for (let j = 0; j < size; j++)
          sum += (E[row + i] as number) * (gram[i * size + j] as number) * (E[row + j] as number);
  }
  return sum;
}

describe.each(ENCODINGS)('%s', (_, encoding) => {
  test.each([
    ['gate and up', false, fullMetric(false)],
    ['down', true, fullMetric(true)],
    ['gate and up, of low rank', false, lowRankMetric(false)],
    ['down, of low rank', true, lowRankMetric(true)],
  ])('error feedback lowers the error in the metric of %s', async (_, transposed, weighing) => {
    const [rows, cols] = transposed ? [d, p] : [p, d];
    const plain = (await written(encoding, transposed)).map((it) => valuesOf(encoding, transposed, it));
    const outputs = await written(encoding, transposed, weighing);
    const fed = outputs.map((it) => valuesOf(encoding, transposed, it));
    expect(errorIn(weighing.gram, fed)).toBeLessThan(0.8 * errorIn(weighing.gram, plain));
    for (const [expert, { tensors, squaredError }] of outputs.entries()) {
      const { data, scales } = storedBytes(encoding, rows, cols);
      expect(Object.values(tensors).map(({ length }) => length)).toEqual([data, scales]);
      const stored = new Float32Array((experts[expert] as Uint8Array<ArrayBuffer>).buffer);
      const own = fed[expert] as Float32Array;
      expect(own.reduce((sum, value, i) => sum + (value - (stored[i] as number)) ** 2, 0)).toBeCloseTo(squaredError, 3);
    }
  });

  test('without a metric, weights have the bytes of plain rounding', async () => {
    const [output] = (await written(encoding, false)) as [ExpertOutput];
    const stored = new Float32Array((experts[0] as Uint8Array<ArrayBuffer>).buffer);
    const plain = new Float32Array(p * d);
    decodePart({ encoding, rows: p, cols: d }, encodeMatrix(encoding, p, d, stored, ''), { first: 0, count: p }, plain);
    // An SVD of full rank is the source but for the last bits.
    const values = valuesOf(encoding, false, output);
    const different = values.filter((value, i) => Math.abs(value - (plain[i] as number)) > 1e-4).length;
    expect(different).toBeLessThan(0.01 * values.length);
  });
});
