/**
 * A job fits one group. Its input is a description in JSON and the group's experts. Its output is the shared factors, then the
 * factors or weights of every expert with their error. Threads and `mobe worker` run the same function. Nothing is kept after
 * it.
 */
import { z } from 'zod';
import { metricOf } from '../../src/calibration/group-metric.js';
import { encodeFinite, floatsOf } from '../../src/checkpoint/codec.js';
import { canEncode } from '../../src/checkpoint/encode-matrix.js';
import { type Encoding, encodingSchema, type StoredEncoding } from '../../src/checkpoint/encoding.js';
import { asFactorised, asStored, decodeMatrix, type MatrixFormat } from '../../src/checkpoint/stored-matrix.js';
import { type Engine, PRECISIONS } from '../../src/engine/engine.js';
import { choosePrecision } from '../../src/engine/tensor-cores.js';
import {
  decodeFactors,
  encodeFactors,
  type FactorForm,
  plainDtypes,
  storedDtypesSchema,
  storedFactors,
} from '../../src/methods/factor-storage.js';
import { inputGram } from '../../src/methods/input-metric.js';
import type { LossPoint } from '../../src/methods/loss-curve.js';
import type { FitStep, GroupShape, StateStore } from '../../src/methods/method.js';
import { createMetricNorm } from '../../src/methods/mobe/metric-norm.js';
import { METHODS, methodNamed } from '../../src/methods/registry.js';
import { size } from '../../src/methods/size-schema.js';
import type { FoldedExpert } from '../records.js';
import { divide, normaliseForFit } from '../stages/normalise.js';
import { encodeExpert, needsGram } from './encode-expert.js';
import { addErrors, NO_ERROR, relativeError, squaredError } from './squared-error.js';
import { encodeWeights, sourceWeights } from './written-weights.js';

const metricMatrix = z
  .strictObject({
    form: z.enum(['full', 'diagonal', 'low-rank']),
    rank: size.optional(),
    shared: z.boolean(),
  })
  .refine(({ form, rank }) => (form === 'low-rank') === (rank !== undefined), 'low-rank has a rank, others have none');
const floatDtype = z.enum(['F32', 'F16', 'BF16']);

const label = z.string().max(1024);

/** The schema of a description. It checks those that come from other machines. */
export const fitJob = z
  .strictObject({
    /** The method's name in the registry. */
    method: z.string().refine((name) => METHODS.has(name), 'no such method'),
    /** The shape of the group and the sizes of its factors. The method's own schema checks it below. */
    problem: z.custom<GroupShape>((it) => typeof it === 'object' && it !== null, 'not an object'),
    /** The size of each expert as stored, and whether its transpose is factorised. */
    format: z.strictObject({ rows: size, cols: size, transposed: z.boolean() }),
    /** The encodings that the experts have. */
    encodings: z.array(encodingSchema).min(1),
    /** The dtype of the output. */
    dtype: floatDtype,
    /** The dtypes of factors, if some are quantised. Only if factors are written. */
    stored: storedDtypesSchema.optional(),
    written: z.enum(['factors', 'weights']),
    /** If undefined, σ is measured from this group's weights. */
    sigma: z.number().positive().optional(),
    solver: z.string(),
    options: z.strictObject({
      steps: size,
      learningRate: z.number().positive().optional(),
      ridge: z.number().positive().max(1).optional(),
      precision: z.enum(PRECISIONS).optional(),
      batchExperts: size,
      holdTargets: z.boolean(),
      seed: z.int().nonnegative(),
    }),
    /** The metric whose matrices come with the experts. Without `fit`, only the factors of experts are fitted in it. */
    metric: z
      .strictObject({
        form: z.strictObject({ rows: metricMatrix.optional(), columns: metricMatrix.optional() }),
        fit: z.boolean(),
      })
      .optional(),
    /** Names the group in errors. */
    label,
    /** For each expert, the number of its encoding, and the names of its weights in errors. */
    tensors: z
      .array(
        z.strictObject({
          name: label,
          file: label,
          encoding: z.int().nonnegative(),
          /** The number of the encoding in which its weights are written; undefined: floats of `dtype`. */
          written: z.int().nonnegative().optional(),
        }),
      )
      .max(2 ** 16),
    /** The first expert to output. Earlier ones were received from a runner that was then lost. */
    firstExpert: z.int().nonnegative(),
    /** If the group's relative error is above this, the job outputs the source's weights. Only if weights are written. */
    maxError: z.number().positive().optional(),
  })
  .refine(({ written, stored }) => written === 'factors' || stored === undefined, {
    path: ['stored'],
    message: 'weights are floats',
  })
  .superRefine(({ method, problem, encodings, tensors, solver }, context) => {
    if (tensors.some(({ encoding }) => encoding >= encodings.length))
      context.addIssue({ code: 'custom', message: 'no such encoding', path: ['tensors'] });
    const isWritten = (number: number): boolean => {
      const encoding = encodings[number];
      return encoding !== undefined && canEncode(encoding);
    };
    if (tensors.some(({ written }) => written !== undefined && !isWritten(written)))
      context.addIssue({ code: 'custom', message: 'no encoding that is written', path: ['tensors'] });
    if (!METHODS.has(method)) return; // reported above
    const { problemSchema, solvers } = methodNamed(method);
    const checked = problemSchema.safeParse(problem);
    for (const issue of checked.error?.issues ?? [])
      context.addIssue({ code: 'custom', message: issue.message, path: ['problem', ...issue.path] });
    if (tensors.length !== problem.experts)
      context.addIssue({ code: 'custom', message: `expected ${problem.experts}`, path: ['tensors'] });
    if (!solvers.includes(solver)) context.addIssue({ code: 'custom', message: 'no such solver', path: ['solver'] });
  });

/** The description of a job, as plain JSON. It decides the result. */
export type FitJob = Readonly<z.infer<typeof fitJob>>;

/** The format of each of a job's experts. */
export const jobFormats = ({ format, encodings, tensors }: FitJob): MatrixFormat[] =>
  tensors.map(({ encoding }) => ({ ...format, encoding: encodings[encoding] as Encoding }));

/** The form in which a job stores factors. */
export const jobForm = ({ method, problem, dtype, stored = plainDtypes(dtype) }: FitJob): FactorForm => ({
  method: methodNamed(method),
  problem,
  dtype,
  stored,
});

/** The encoding in which a job writes an expert's weights. */
export const writtenEncoding = ({ dtype, encodings, tensors }: FitJob, expert: number): StoredEncoding => {
  const { written } = tensors[expert] ?? {};
  return written === undefined ? { kind: 'float', dtype } : (encodings[written] as StoredEncoding); // checked by the schema
};

/** The first output of a job: the parts of the shared factors (`NamedPart.key`). */
export interface FittedFactors {
  readonly kind: 'fitted';
  readonly sigma: number;
  readonly shared: Readonly<Record<string, Uint8Array<ArrayBuffer>>>;
  readonly steps: number;
  readonly losses: readonly LossPoint[];
  /** Duration of the fit. */
  readonly seconds: number;
  /** The relative error, if it is above `maxError`. Then the experts that follow are the source's weights. */
  readonly keptError?: number | undefined;
}

/** The data of a job. */
export interface JobData {
  /** The experts as stored, in order. */
  readonly experts: ReadonlyArray<Uint8Array>;
  /** The experts' matrices of the job's metric, as in `GroupMetric`; absent without one. */
  readonly metric?: ReadonlyArray<Uint8Array> | undefined;
}

/** The data of a job, whose buffers can be transferred to a thread. */
export interface OwnedData extends JobData {
  readonly experts: ReadonlyArray<Uint8Array<ArrayBuffer>>;
  readonly metric?: ReadonlyArray<Uint8Array<ArrayBuffer>> | undefined;
}

/** A further output of a job: one expert. */
export interface ExpertOutput extends FoldedExpert {
  readonly kind: 'expert';
  readonly tensors: Readonly<Record<string, Uint8Array<ArrayBuffer>>>;
}

/** The outputs of a job: `FittedFactors` first, then the experts in order. */
export type JobOutput = FittedFactors | ExpertOutput;

/** Callbacks of a job where it runs. They do not change the result. */
export interface JobHooks {
  readonly onStep?: ((step: FitStep) => void) | undefined;
  /** Saves the fit's state, and loads it to resume. */
  readonly states?: StateStore | undefined;
}

/**
 * Runs a job. Throws `NonFiniteWeightError`, `DegenerateGroupError` and `OverflowError` if weights cannot be fitted or written,
 * `DivergedError` if the fit diverges, and `PrecisionError` if it asks for TF32 where there is none.
 */
export async function* runJob(
  engine: Engine,
  job: FitJob,
  { experts, metric: matrices }: JobData,
  hooks: JobHooks = {},
): AsyncGenerator<JobOutput> {
  const started = performance.now();
  const { problem, format, dtype, written, options, solver, label, maxError } = job;
  const method = methodNamed(job.method);

  // Normalise.
  const quantises = job.tensors.some((tensor) => tensor.written !== undefined);
  const writtenDtype = written === 'weights' && !quantises ? dtype : undefined;
  const formats = jobFormats(job);
  const weights = { formats, experts, labels: job.tensors, sigma: job.sigma, writtenDtype, label };
  // A method that reads no targets from step to step has no use for kept ones.
  const hold = method.memory(problem, { ...options, solver }).targets > 0;
  const targets = normaliseForFit(weights, hold);
  const { sigma } = targets;

  // Factorise.
  choosePrecision(engine, options.precision);
  const metric = job.metric && matrices && metricOf(problem, job.metric.form, matrices);
  const weighed = job.metric?.fit ? { ...targets, metric } : targets;
  const fit = await method.fit(engine, problem, weighed, { ...options, ...hooks, solver, label, sigma });
  const factors = storedFactors(jobForm(job));
  const shared = encodeFactors(factors.shared, fit.shared, (name) => `${name} of ${label}`);
  const rounded = decodeFactors(factors.shared, shared);
  const round = (values: Float32Array): Float32Array => floatsOf(dtype, encodeFinite(dtype, values, label));
  const form = { method, factors: factors.byExpert };
  const how = { ridge: options.ridge, gram: needsGram(form) };
  const own = await method.expertFactors(engine, problem, rounded, round, metric, how);
  const reconstruction = await method.rebuild(engine, problem, rounded);
  const norm = metric && (await createMetricNorm(engine, problem, metric));
  const errorInMetric = async (expert: number, dense: Float32Array, rebuilt: Float32Array) => {
    if (!norm) return {};
    const squaredNorm = await norm.squared(expert, dense);
    const difference = dense.map((value, i) => value - (rebuilt[i] as number));
    return { metric: { squaredError: await norm.squared(expert, difference), squaredNorm } };
  };

  // Fold σ into each expert's factors, and measure the error of exactly what is written.
  const fold = async (expert: number): Promise<ExpertOutput> => {
    const stored = decodeStored(formats[expert] as MatrixFormat, experts[expert] as Uint8Array);
    const dense = asFactorised(format, stored);
    const target = dense.slice();
    divide(target, sigma);
    const expertLabel = `${label}, expert ${expert}`;
    const tensors = await encodeExpert(form, own, { expert, target, sigma, label: expertLabel });
    const rebuilt = await reconstruction.expert(expert, decodeFactors(factors.byExpert, tensors));
    if (written === 'factors') {
      const errors = { ...squaredError(dense, rebuilt), ...(await errorInMetric(expert, dense, rebuilt)) };
      return { kind: 'expert', expert, tensors, ...errors };
    }
    const { tensors: weights, values } = encodeWeights(
      writtenEncoding(job, expert),
      format,
      asStored(format, rebuilt),
      expertLabel,
      quantises ? inputGram(metric, problem, format.transposed, expert) : undefined,
    );
    const inMetric = await errorInMetric(expert, dense, asFactorised(format, values));
    return { kind: 'expert', expert, tensors: weights, ...squaredError(stored, values), ...inMetric };
  };
  const keep = (expert: number): ExpertOutput => {
    const [own, bytes] = [formats[expert] as MatrixFormat, experts[expert] as Uint8Array];
    const encoding = writtenEncoding(job, expert);
    const tensors =
      job.tensors[expert]?.written === undefined
        ? encodeWeights(encoding, format, decodeStored(own, bytes), `${label}, expert ${expert}`).tensors
        : sourceWeights(encoding, own, bytes);
    return { kind: 'expert', expert, tensors, ...NO_ERROR };
  };
  try {
    let keptError: number | undefined;
    if (maxError !== undefined) {
      // The error is known only when all experts are rebuilt, and no expert may be written before that. So all are rebuilt
      // twice.
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
    await norm?.dispose();
  }
}

function decodeStored(format: MatrixFormat, bytes: Uint8Array): Float32Array {
  const values = new Float32Array(format.rows * format.cols);
  decodeMatrix({ ...format, transposed: false }, bytes, values);
  return values;
}
