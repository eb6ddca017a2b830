/** What a coordinator and a worker say to each other: docs/wire.md, "Worker". Checked on arrival, both ways. */
import { z } from 'zod';
import { lossCurve } from '../../src/conversion/stored-report.js';
import { ENGINE_NAMES } from '../../src/engine/create-engine.js';

export const WORKER_SERVICE = 'worker';

/** The cap is far above any model's: it keeps sizes computed from it exact. */
const size = z
  .int()
  .positive()
  .max(2 ** 24);

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

const numberOrNan = z.union([z.number(), z.nan()]);

/**
 * The answer to "fit", which sends a job (job.ts) and its experts as tensors named by their numbers: events, each after the tensors it
 * speaks of. Shared factors are named `shared.<factor>`, those of an expert `<number>.<factor>`.
 */
export const jobEvent = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('step'),
    step: z.number(),
    steps: z.number(),
    loss: numberOrNan,
    rate: z.number(),
    /** NaN while it is not known. */
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
    squaredError: numberOrNan,
    squaredNorm: z.number(),
  }),
]);

export const sharedName = (factor: string): string => `shared.${factor}`;
export const expertName = (expert: number, factor: string): string => `${expert}.${factor}`;
