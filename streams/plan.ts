import { type CompressionPlan, planCompression } from '../src/conversion/compression.js';
import { estimateSeconds } from '../src/conversion/estimate.js';
import type { CompressOptions } from '../src/conversion/settings.js';
import { ComputeWorker } from './worker-pool.js';

export interface TimedPlan extends CompressionPlan {
  /** Expected duration, from the measured rate of this machine; within a factor of two or so. */
  readonly estimatedSeconds: number;
}

/** What `compress` would do with the same arguments. Reads headers, then measures this machine for a fraction of a second. */
export async function plan(model: string, options: CompressOptions = {}): Promise<TimedPlan> {
  return withEstimate(await planCompression(model, options));
}

export async function withEstimate(planned: CompressionPlan): Promise<TimedPlan> {
  const [largest] = planned.groups;
  if (!largest) return { ...planned, estimatedSeconds: estimateSeconds(planned, 1) };
  const { engine } = planned.settings;
  const worker = new ComputeWorker({ engine, threads: planned.memory.threadsPerWorker });
  try {
    const rate = await worker.call('gemmRate', [largest.problem]);
    return { ...planned, estimatedSeconds: estimateSeconds(planned, rate) };
  } finally {
    await worker.close();
  }
}
