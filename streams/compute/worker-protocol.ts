/** What a coordinator and a worker say to each other: docs/wire.md, "Worker". Checked on arrival, both ways. */
import { z } from 'zod';
import { encodingSchema } from '../../src/checkpoint/encoding.js';
import { lossCurve } from '../../src/conversion/stored-report.js';
import { ENGINE_NAMES } from '../../src/engine/create-engine.js';
import { ACTIVATIONS, SOLVERS } from '../../src/methods/mobe/problem.js';

export const WORKER_SERVICE = 'worker';

/** The caps are far above any model's: they keep sizes computed from them exact. */
const size = z
  .int()
  .positive()
  .max(2 ** 24);
const floatDtype = z.enum(['F32', 'F16', 'BF16']);
/** What a worker has to offer. */
export const workerFacts = z.strictObject({
  name: z.enum(ENGINE_NAMES),
  device: z.string(),
  kind: z.enum(['cpu', 'gpu']),
  maxTensorBytes: z.number().positive().optional(),
  threads: size,
});
export type WorkerFacts = z.infer<typeof workerFacts>;

/** The first request of a session: the engine is made, with so many threads. */
export const openParams = z.strictObject({ threads: size.max(1024) });

/** Measures plain products of these shapes; the answer is floating-point operations a second. */
export const rateParams = z.strictObject({ rows: size, cols: size, rank: size });
export const rateResult = z.number().positive();

/** A fit but for the experts, which come as tensors named by their numbers, in order. */
export const fitParams = z.strictObject({
  problem: z.strictObject({
    experts: size,
    rows: size,
    cols: size,
    bases: size,
    rank: size,
    activation: z.enum(ACTIVATIONS),
  }),
  format: z.strictObject({ encoding: encodingSchema, rows: size, cols: size, transposed: z.boolean() }),
  dtype: floatDtype,
  sigma: z.number().positive(),
  solver: z.enum(SOLVERS),
  options: z.strictObject({
    steps: size,
    learningRate: z.number().positive().optional(),
    batchExperts: size,
    holdTargets: z.boolean(),
    seed: z.int().nonnegative(),
    label: z.string().max(1024),
  }),
});
export type FitParams = z.infer<typeof fitParams>;

export const stepEvent = z.object({
  step: z.number(),
  steps: z.number(),
  loss: z.union([z.number(), z.nan()]),
  rate: z.number(),
  /** NaN while it is not known. */
  secondsLeft: z.union([z.number(), z.nan()]),
});

/** B and α come as tensors. */
export const fitResult = z.strictObject({ steps: z.number(), losses: lossCurve, seconds: z.number() });

export const foldParams = z.strictObject({ expert: z.int().nonnegative(), written: z.enum(['factors', 'weights']) });

/** What is written for the expert comes as a tensor. */
export const foldResult = z.strictObject({ squaredError: z.number(), squaredNorm: z.number() });
