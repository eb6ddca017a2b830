import { type CompressionPlan, planCompression } from '../../src/conversion/compression-plan.js';
import { estimateSeconds } from '../../src/conversion/estimate.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { ComputeThread } from '../compute/compute-thread.js';
import { askRate, askWorkers, type RemoteWorkers } from '../compute/remote-runner.js';
import type { PeerOptions } from '../machines/peer-options.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { RunOptions } from '../run-options.js';

export interface TimedPlan extends CompressionPlan {
  /** Expected duration, from the measured rate of this machine; within a factor of two or so. */
  readonly estimatedSeconds: number;
}

/** What `compress` would do with the same arguments. Reads headers, then measures this machine for a fraction of a second. */
export async function plan(
  model: Source,
  options: CompressOptions = {},
  run: Pick<RunOptions, 'peers' | 'workers'> = {},
): Promise<TimedPlan> {
  const { planned, remote } = await planRun(model, options, run);
  return withEstimate(planned, remote, run.peers);
}

export interface PlannedRun {
  readonly planned: CompressionPlan;
  /** The machines that fit, where it is not this one. */
  readonly remote: RemoteWorkers | undefined;
}

/** Opens the source, wherever it is, asks the workers what they are, and plans. */
export async function planRun(
  model: Source,
  options: CompressOptions,
  { peers = {}, workers = [], fileSystem }: Pick<RunOptions, 'peers' | 'workers' | 'fileSystem'>,
): Promise<PlannedRun> {
  const source = await openSource(model, { peers, fileSystem });
  const remote = workers.length ? await askWorkers(workers, peers) : undefined;
  // A fit that one of them could not give its threads would be another fit there.
  const threads = remote && options.threads === undefined ? { threads: Math.min(...remote.threads) } : {};
  return { planned: await planCompression(source, { ...options, ...threads }, remote), remote };
}

export async function withEstimate(
  planned: CompressionPlan,
  remote?: RemoteWorkers,
  peers: PeerOptions = {},
): Promise<TimedPlan> {
  const [largest] = planned.groups;
  if (!largest) return { ...planned, estimatedSeconds: estimateSeconds(planned, 1) };
  const { threadsPerWorker: threads } = planned.memory;
  if (remote) {
    const rate = await askRate(remote, largest.method.product(largest.problem), threads, peers);
    return { ...planned, estimatedSeconds: estimateSeconds(planned, rate) };
  }
  const { engine } = planned.settings;
  const thread = new ComputeThread({ engine, threads });
  try {
    const rate = await thread.call('gemmRate', [largest.method.product(largest.problem)]);
    return { ...planned, estimatedSeconds: estimateSeconds(planned, rate) };
  } finally {
    await thread.close();
  }
}
