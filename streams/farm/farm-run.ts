/** Runs of a farm as they lie in the queue: a description each, which workers read, and one job for each unit of groups. */
import { createHash } from 'node:crypto';
import type { Queue } from 'bullmq';
import { z } from 'zod';
import { type CompressOptions, resolveSettings } from '../../src/conversion/settings.js';
import { ENGINE_NAMES, type EngineName } from '../../src/engine/create-engine.js';
import { type FarmQueue, KEY_PREFIX } from './redis.js';

/** The description of a run. It holds no secrets. */
const farmRun = z.strictObject({
  /** Hash of everything that decides the bytes, and of the folder. */
  id: z.string(),
  version: z.string(),
  /** Locations as the workers see them. */
  model: z.string(),
  /** The folder that factors are written to: a folder of this run in the shared place. */
  factors: z.string(),
  out: z.string(),
  sourceFingerprint: z.string(),
  /** The options of the fit, among them the engine, and threads and experts a batch, which decide bits. */
  options: z
    .custom<CompressOptions>((value) => typeof value === 'object' && value !== null)
    .refine((options) => resolveSettings(options) !== undefined),
  engine: z.enum(ENGINE_NAMES),
  /** CPU threads of a fit, and experts a batch. */
  threads: z.int().positive(),
  batchExperts: z.int().positive(),
  /** The number of units, and of those that were finished when it was submitted, which have no jobs. */
  units: z.int().nonnegative(),
  finished: z.int().nonnegative(),
  /** ISO 8601 */
  submitted: z.string(),
  host: z.string(),
});
export type FarmRun = Readonly<z.infer<typeof farmRun>>;

/** The data of a job. */
export const jobData = z.strictObject({ run: z.string(), label: z.string(), groups: z.array(z.string()).min(1) });
export type JobData = Readonly<z.infer<typeof jobData>>;

/** Progress of a running job. */
export const jobProgress = z.object({
  host: z.string(),
  step: z.number().optional(),
  steps: z.number().optional(),
  loss: z.number().nullish(),
  secondsLeft: z.number().nullish(),
});
export type JobProgress = Readonly<z.infer<typeof jobProgress>>;

/** Result of a job. */
export interface JobResult {
  readonly host: string;
  readonly device: string;
  readonly seconds: number;
  /** True if the factors were there already, for example from a worker that was killed before it could say so. */
  readonly already: boolean;
}

const shortHash = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 16);

/** The hash that identifies a run. @param decisive everything that decides its bytes, as JSON */
export const runId = (decisive: unknown): string => shortHash(JSON.stringify(decisive));

/** Identifies a job: the hash of its run, and of its groups. */
export const jobId = (run: string, label: string): string => `${run}-${shortHash(label)}`;

/** Workers take the jobs of their engine. Engines differ in their bits, so a run is fitted by one engine alone. */
export const engineQueue = (engine: EngineName): string => `fits-${engine}`;

/** The jobs of all runs that an engine fits. */
export function openJobs({ bull, redis }: FarmQueue, engine: EngineName): Queue<JobData, JobResult> {
  const queue = new bull.Queue<JobData, JobResult>(engineQueue(engine), { connection: redis, prefix: KEY_PREFIX });
  queue.on('error', () => {}); // openQueue tells of lost connections
  return queue;
}

const RUNS_KEY = `${KEY_PREFIX}:runs`;

export async function putRun({ redis }: FarmQueue, run: FarmRun): Promise<void> {
  await redis.hset(RUNS_KEY, run.id, JSON.stringify(run));
}

/** The description of a run; undefined if it was removed. Throws a `ZodError` or an `OptionError` if it is no description. */
export async function getRun({ redis }: FarmQueue, id: string): Promise<FarmRun | undefined> {
  const text = await redis.hget(RUNS_KEY, id);
  return text === null ? undefined : farmRun.parse(JSON.parse(text));
}

/** All runs, oldest first. Descriptions of other versions that cannot be read are left out. */
export async function listRuns({ redis }: FarmQueue): Promise<FarmRun[]> {
  const texts = Object.values(await redis.hgetall(RUNS_KEY));
  const runs = texts.flatMap((text) => {
    try {
      return [farmRun.parse(JSON.parse(text))];
    } catch {
      return [];
    }
  });
  return runs.sort((a, b) => (a.submitted < b.submitted ? -1 : 1));
}

export async function removeRun({ redis }: FarmQueue, id: string): Promise<void> {
  await redis.hdel(RUNS_KEY, id);
}
