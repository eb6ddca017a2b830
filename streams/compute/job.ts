/**
 * One group's fit as a job: a description that is plain JSON and the group's experts in; shared factors, then every expert's
 * factors or weights with their error out. A thread, a worker on a socket and whatever else runs jobs run this very function.
 * Nothing is kept once it has ended.
 */
import { z } from 'zod';
import { encodeFinite, floatsOf } from '../../src/checkpoint/codec.js';
import { encodingSchema } from '../../src/checkpoint/encoding.js';
import { asFactorised, asStored, decodeMatrix } from '../../src/checkpoint/stored-matrix.js';
import { WEIGHTS } from '../../src/conversion/group-places.js';
import type { Engine } from '../../src/engine/engine.js';
import { mapValues } from '../../src/map-values.js';
import type { LossPoint } from '../../src/methods/loss-curve.js';
import type { Factors, FitStep, GroupShape, StateStore } from '../../src/methods/method.js';
import { METHODS, methodNamed } from '../../src/methods/registry.js';
import type { FoldedExpert } from '../records.js';
import { foldSigma } from '../stages/fold.js';
import { divide, normaliseForFit } from '../stages/normalise.js';
import { addErrors, NO_ERROR, relativeError, squaredError } from './squared-error.js';

/** The caps are far above any model's: they keep sizes computed from them exact. */
const size = z
  .int()
  .positive()
  .max(2 ** 24);
const floatDtype = z.enum(['F32', 'F16', 'BF16']);

const label = z.string().max(1024);

/** Checks a description that came from elsewhere. */
export const fitJob = z
  .strictObject({
    /** Its name in the registry. */
    method: z.string().refine((name) => Object.hasOwn(METHODS, name), 'no such method'),
    /** What the method takes: the shape of the group, and the sizes of its factors. */
    problem: z.custom<GroupShape>((it) => typeof it === 'object' && it !== null, 'not an object'),
    /** How the experts come. */
    format: z.strictObject({ encoding: encodingSchema, rows: size, cols: size, transposed: z.boolean() }),
    /** Of what is written. */
    dtype: floatDtype,
    written: z.enum(['factors', 'weights']),
    /** Undefined: the standard deviation of this group's weights. */
    sigma: z.number().positive().optional(),
    solver: z.string(),
    options: z.strictObject({
      steps: size,
      learningRate: z.number().positive().optional(),
      batchExperts: size,
      holdTargets: z.boolean(),
      seed: z.int().nonnegative(),
    }),
    /** Names the group in errors. */
    label,
    /** Names each expert's weights in errors. */
    tensors: z.array(z.strictObject({ name: label, file: label })).max(2 ** 16),
    /** Experts before this one are not wanted again. */
    firstExpert: z.int().nonnegative(),
    /** Where the fit is worse, the source's weights are wanted in its place. For weights only. */
    maxError: z.number().positive().optional(),
  })
  .superRefine(({ method, problem, tensors, solver }, context) => {
    if (!Object.hasOwn(METHODS, method)) return; // told above
    const { problemSchema, solvers } = methodNamed(method);
    const checked = problemSchema.safeParse(problem);
    for (const issue of checked.error?.issues ?? [])
      context.addIssue({ code: 'custom', message: issue.message, path: ['problem', ...issue.path] });
    if (tensors.length !== problem.experts)
      context.addIssue({ code: 'custom', message: `expected ${problem.experts}`, path: ['tensors'] });
    if (!solvers.includes(solver)) context.addIssue({ code: 'custom', message: 'no such solver', path: ['solver'] });
  });

export type FitJob = Readonly<z.infer<typeof fitJob>>;

/** The first output: what the experts share, in the job's dtype, by name. */
export interface FittedFactors {
  readonly kind: 'fitted';
  readonly sigma: number;
  readonly shared: Readonly<Record<string, Uint8Array<ArrayBuffer>>>;
  readonly steps: number;
  readonly losses: readonly LossPoint[];
  /** What the fit took. */
  readonly seconds: number;
  /** The relative error, where it is above `maxError`: what comes then are the source's weights. */
  readonly keptError?: number | undefined;
}

export interface ExpertOutput extends FoldedExpert {
  readonly kind: 'expert';
  readonly tensors: Readonly<Record<string, Uint8Array<ArrayBuffer>>>;
}

export type JobOutput = FittedFactors | ExpertOutput;

/** What a job tells, and is given, where it runs. It makes no difference to the result. */
export interface JobHooks {
  readonly onStep?: ((step: FitStep) => void) | undefined;
  /** Where the fit saves its state and goes on from it. */
  readonly states?: StateStore | undefined;
}

/**
 * Runs a job. Throws `NonFiniteWeightError`, `DegenerateGroupError` and `OverflowError` of weights that cannot be fitted or
 * written, `DivergedError` of the fit.
 * @param experts as stored, in expert order
 */
export async function* runJob(
  engine: Engine,
  job: FitJob,
  experts: readonly Uint8Array[],
  hooks: JobHooks = {},
): AsyncGenerator<JobOutput> {
  const started = performance.now();
  const { problem, format, dtype, written, options, solver, label, maxError } = job;
  const method = methodNamed(job.method);

  // Normalise.
  const writtenDtype = written === 'weights' ? dtype : undefined;
  const weights = { format, experts, labels: job.tensors, sigma: job.sigma, writtenDtype, label };
  const targets = normaliseForFit(weights, options.holdTargets);
  const { sigma } = targets;

  // Factorise.
  const fit = await method.fit(engine, problem, targets, { ...options, ...hooks, solver, label, sigma });
  const shared = mapValues(fit.shared, (values, name) => encodeFinite(dtype, values, `${name} of ${label}`));
  const rounded: Factors = mapValues(shared, (bytes) => floatsOf(dtype, bytes));
  const round = (values: Float32Array): Float32Array => floatsOf(dtype, encodeFinite(dtype, values, label));
  const own = await method.expertFactors(engine, problem, rounded, round);
  const reconstruction = await method.rebuild(engine, problem, rounded);

  // Fold σ into each expert's factors, and measure the error of exactly what is written.
  const fold = async (expert: number): Promise<ExpertOutput> => {
    const stored = decodeStored(format, experts[expert] as Uint8Array);
    const dense = asFactorised(format, stored);
    const target = dense.slice();
    divide(target, sigma);
    const expertLabel = `${label}, expert ${expert}`;
    const tensors = foldSigma(method, await own.fit(expert, target), sigma, dtype, expertLabel);
    const rebuilt = await reconstruction.expert(
      expert,
      mapValues(tensors, (bytes) => floatsOf(dtype, bytes)),
    );
    if (written === 'factors') return { kind: 'expert', expert, tensors, ...squaredError(dense, rebuilt) };
    const data = encodeFinite(dtype, asStored(format, rebuilt), expertLabel);
    return { kind: 'expert', expert, tensors: { [WEIGHTS]: data }, ...squaredError(stored, floatsOf(dtype, data)) };
  };
  const keep = (expert: number): ExpertOutput => {
    const stored = decodeStored(format, experts[expert] as Uint8Array);
    const weights = encodeFinite(dtype, stored, `${label}, expert ${expert}`);
    return { kind: 'expert', expert, tensors: { [WEIGHTS]: weights }, ...NO_ERROR };
  };
  try {
    let keptError: number | undefined;
    if (maxError !== undefined) {
      // Errors are known when the last expert was rebuilt, and the first is not to be written before: all are rebuilt twice.
      let error = NO_ERROR;
      for (let expert = 0; expert < problem.experts; expert++) error = addErrors(error, await fold(expert));
      const relative = relativeError(error);
      if (!(relative <= maxError)) keptError = relative;
    }
    const { steps, losses } = fit;
    yield { kind: 'fitted', sigma, shared, steps, losses, seconds: (performance.now() - started) / 1000, keptError };
    for (let expert = job.firstExpert; expert < problem.experts; expert++)
      yield keptError === undefined ? await fold(expert) : keep(expert);
  } finally {
    await own.dispose();
    await reconstruction.dispose();
  }
}

function decodeStored(format: FitJob['format'], bytes: Uint8Array): Float32Array {
  const values = new Float32Array(format.rows * format.cols);
  decodeMatrix({ ...format, transposed: false }, bytes, values);
  return values;
}
