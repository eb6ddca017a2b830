import { beforeAll, describe, expect, test } from 'vitest';
import { encodeFloats, floatsOf } from '../../src/checkpoint/codec.js';
import { createEngine } from '../../src/engine/create-engine.js';
import type { Engine } from '../../src/engine/engine.js';
import { DegenerateGroupError, NonFiniteWeightError, PrecisionError } from '../../src/errors.js';
import { createRandom } from '../../src/linalg/random.js';
import type { Problem } from '../../src/methods/mobe/problem.js';
import { type ExpertOutput, type FitJob, type FittedFactors, fitJob, type JobOutput, runJob } from './job.js';

const [n, p, d] = [4, 6, 20];
const PROBLEM: Problem = { experts: n, rows: p, cols: d, bases: 2, rank: 6, activation: 'silu' };
const JOB: FitJob = {
  method: 'mobe',
  problem: PROBLEM,
  format: { rows: p, cols: d, transposed: false },
  encodings: [{ kind: 'float', dtype: 'BF16' }],
  dtype: 'BF16',
  written: 'factors',
  solver: 'varpro',
  options: { steps: 5, batchExperts: 3, holdTargets: true, seed: 1 },
  label: 'layer 0 gate_proj',
  tensors: Array.from({ length: n }, (_, i) => ({ name: `experts.${i}`, file: 'model.safetensors', encoding: 0 })),
  firstExpert: 0,
};

function weights(): Array<Uint8Array<ArrayBuffer>> {
  const random = createRandom(7, 0);
  return Array.from({ length: n }, () =>
    encodeFloats(
      'BF16',
      Float32Array.from({ length: p * d }, () => 0.02 * random.normal()),
    ),
  );
}

let engine: Engine;
beforeAll(async () => {
  engine = await createEngine('onnx-cpu', { threads: 1 });
});

async function outputs(job: FitJob, experts = weights()): Promise<JobOutput[]> {
  const all: JobOutput[] = [];
  for await (const output of runJob(engine, job, { experts })) all.push(output);
  return all;
}
const fitted = (all: JobOutput[]) => all[0] as FittedFactors;
const expertsOf = (all: JobOutput[]) => all.slice(1) as ExpertOutput[];
const errorOf = (all: JobOutput[]) => {
  const sum = (key: 'squaredError' | 'squaredNorm') => expertsOf(all).reduce((total, it) => total + it[key], 0);
  return Math.sqrt(sum('squaredError') / sum('squaredNorm'));
};

describe('a job', () => {
  test('gives the shared factors first, then every expert with its own', async () => {
    const all = await outputs(JOB);
    expect(all.map(({ kind }) => kind)).toEqual(['fitted', 'expert', 'expert', 'expert', 'expert']);
    const { shared, sigma, steps } = fitted(all);
    expect(shared.B?.byteLength).toBe(2 * 2 * 6 * d);
    expect(shared.alpha?.byteLength).toBe(2 * n * 2);
    expect(sigma).toBeGreaterThan(0.015);
    expect(steps).toBeGreaterThan(0);
    expect(expertsOf(all).map(({ expert }) => expert)).toEqual([0, 1, 2, 3]);
    expect(expertsOf(all).map(({ tensors }) => tensors.A?.byteLength)).toEqual(Array(n).fill(2 * p * 6));
  });

  test('leaves nothing behind: the next one on the same engine gives the same', async () => {
    const strip = (all: JobOutput[]) => all.map((it) => ({ ...it, seconds: 0 }));
    expect(strip(await outputs(JOB))).toEqual(strip(await outputs(JOB)));
  });

  test('in TF32 is refused by an engine that has none, so that nobody takes its result for one in TF32', async () => {
    const job: FitJob = { ...JOB, options: { ...JOB.options, precision: 'tf32' } };
    await expect(outputs(job)).rejects.toThrow(PrecisionError);
    const [f32] = await outputs({ ...JOB, options: { ...JOB.options, precision: 'f32' } });
    expect((f32 as FittedFactors).shared).toEqual(fitted(await outputs(JOB)).shared);
  });

  test('is the same with σ given, with targets decoded anew for each step, and for an expert in its middle', async () => {
    const whole = await outputs(JOB);
    const strip = (all: JobOutput[]) => all.map((it) => ({ ...it, seconds: 0 }));
    expect(strip(await outputs({ ...JOB, sigma: fitted(whole).sigma }))).toEqual(strip(whole));
    const frugal = { ...JOB, options: { ...JOB.options, holdTargets: false } };
    expect(strip(await outputs(frugal))).toEqual(strip(whole));
    expect(strip(await outputs({ ...JOB, firstExpert: 2 }))).toEqual(
      strip([whole[0], ...whole.slice(3)] as JobOutput[]),
    );
  });

  test('writes weights whose error is that of the bytes', async () => {
    const source = weights();
    const all = await outputs({ ...JOB, written: 'weights' });
    for (const { expert, tensors, squaredError } of expertsOf(all)) {
      const [was, is] = [source[expert], tensors.weights].map((it) => floatsOf('BF16', it as Uint8Array));
      const squares = (was as Float32Array).map((w, i) => (w - ((is as Float32Array)[i] as number)) ** 2);
      expect(squares.reduce((a, b) => a + b, 0)).toBeCloseTo(squaredError, 6);
    }
  });

  test('gives the source’s weights where the fit is worse than asked for, and says how bad it was', async () => {
    const written = { ...JOB, written: 'weights' } as const;
    const error = errorOf(await outputs(written));
    const within = await outputs({ ...written, maxError: error });
    expect(fitted(within).keptError).toBeUndefined();
    const kept = await outputs({ ...written, maxError: 0.99 * error });
    expect(fitted(kept).keptError).toBeCloseTo(error, 12);
    expect(expertsOf(kept).map(({ tensors }) => Buffer.from(tensors.weights ?? []).toString('hex'))).toEqual(
      weights().map((it) => Buffer.from(it).toString('hex')),
    );
  });

  test('names the tensor and the file of a weight that is not finite', async () => {
    const bad = weights();
    new Uint16Array((bad[2] as Uint8Array<ArrayBuffer>).buffer)[5] = 0x7fc0;
    await expect(outputs(JOB, bad)).rejects.toThrow(NonFiniteWeightError);
    await expect(outputs(JOB, bad)).rejects.toThrow(/experts\.2.*model\.safetensors/);
  });

  test('refuses weights that are all the same', async () => {
    const same = weights().map((it) => new Uint8Array(it.byteLength));
    await expect(outputs(JOB, same)).rejects.toThrow(DegenerateGroupError);
  });
});

describe('a description', () => {
  test('survives JSON', () => {
    expect(fitJob.parse(JSON.parse(JSON.stringify(JOB)))).toEqual(JOB);
  });

  test.each<[string, object, RegExp]>([
    ['a method nobody knows', { method: 'magic' }, /no such method/],
    ['a solver of another method', { solver: 'magic' }, /no such solver/],
    ['sizes that the method does not take', { problem: { ...JOB.problem, bases: -1 } }, /bases/],
    ['fewer names than experts', { tensors: [] }, /tensors/],
    ['what it does not know', { extra: 1 }, /extra/],
  ])('with %s is refused', (_, change, says) => {
    expect(() => fitJob.parse({ ...JOB, ...change })).toThrow(says);
  });
});
