/** Messages between a coordinator and a worker: docs/wire.md, "Worker". Both sides check what they receive. */
import { z } from 'zod';
import { lossCurve } from '../../src/conversion/stored-report.js';
import { ENGINE_NAMES } from '../../src/engine/create-engine.js';
import { size } from '../../src/methods/size-schema.js';

export const WORKER_SERVICE = 'worker';

/** A worker's engine, device and CPU threads. */
export const workerFacts = z.strictObject({
  name: z.enum(ENGINE_NAMES),
  device: z.string(),
  kind: z.enum(['cpu', 'gpu']),
  maxTensorBytes: z.number().positive().optional(),
  /** Whether fits may ask for products in TF32. */
  tf32: z.boolean().optional(),
  threads: size,
});
export type WorkerFacts = z.infer<typeof workerFacts>;

/** Parameters of "open", the first request of a session: the worker makes an engine with this many threads. */
export const openParams = z.strictObject({ threads: size.max(1024) });

const numberOrNan = z.union([z.number(), z.nan()]);

const squaredError = { squaredError: numberOrNan, squaredNorm: z.number() };

/**
 * The most bytes of a job as JSON. It names each expert and its file, about 200 bytes for each of at most 65,536 experts.
 */
export const MAX_JOB_BYTES = 32 * 1024 * 1024;

/**
 * The events that answer "fit". The request sends a job (job.ts) as JSON, then its experts as tensors named by their numbers, then
 * their matrices of the metric, if it has one, named `metric.<number>`. Each event follows the tensors that it is about. Shared factors are named `shared.<factor>`, those of an expert `<number>.<factor>`.
 */
export const jobEvent = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('step'),
    step: z.number(),
    steps: z.number(),
    loss: numberOrNan,
    rate: z.number(),
    /** NaN while unknown. */
    secondsLeft: numberOrNan,
  }),
  z.strictObject({
    kind: z.literal('fitted'),
    sigma: z.number().positive(),
    steps: z.number(),
    losses: lossCurve,
    seconds: z.number(),
    keptError: numberOrNan.optional(),
  }),
  z.strictObject({
    kind: z.literal('expert'),
    expert: z.int().nonnegative(),
    ...squaredError,
    metric: z.strictObject(squaredError).optional(),
  }),
]);

export const metricName = (expert: number): string => `metric.${expert}`;
export const sharedName = (factor: string): string => `shared.${factor}`;
export const expertName = (expert: number, factor: string): string => `${expert}.${factor}`;
