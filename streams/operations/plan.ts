import { openRecord } from '../../src/calibration/open-record.js';
import type { CalibrationRecord } from '../../src/calibration/record.js';
import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { type CompressionPlan, planCompression } from '../../src/conversion/compression-plan.js';
import { estimateSeconds, type TimedPlan } from '../../src/conversion/estimate.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { ComputeThread } from '../compute/compute-thread.js';
import { askRate, askWorkers, type RemoteWorkers } from '../compute/remote-runner.js';
import type { PeerOptions } from '../machines/peer-options.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { RunOptions } from '../run-options.js';

/**
 * Plans what `compress` would do with the same arguments. Reads headers, then measures the speed of the machine that fits for a
 * fraction of a second. Throws an `InputError` if the checkpoint or the options do not allow the run.
 */
export async function plan(
  model: Source,
  options: CompressOptions = {},
  run: Pick<RunOptions, 'peers' | 'workers'> = {},
): Promise<TimedPlan> {
  const { planned, remote } = await planRun(model, options, run);
  return withEstimate(planned, remote, run.peers);
}

/** A plan and the machines that it is for. */
export interface PlannedRun {
  readonly planned: CompressionPlan;
  /** The machines that fit; undefined if this machine does. */
  readonly remote: RemoteWorkers | undefined;
  /** The calibration record that the fits use. */
  readonly record?: CalibrationRecord | undefined;
}

/** Opens the source and the calibration record, asks the workers for their facts, and plans. Throws as `plan` and `askWorkers` do. */
export async function planRun(
  model: Source,
  options: CompressOptions,
  { peers = {}, workers = [], fileSystem }: Pick<RunOptions, 'peers' | 'workers' | 'fileSystem'>,
): Promise<PlannedRun> {
  const source = await openSource(model, { peers, fileSystem });
  const remote = workers.length ? await askWorkers(workers, peers) : undefined;
  // The number of threads can change a fit's bits, so every worker must be able to give a fit the same number.
  const threads = remote && options.threads === undefined ? { threads: Math.min(...remote.threads) } : {};
  const { calibration } = options;
  const record =
    calibration === undefined
      ? undefined
      : await openRecord(calibration, { sourceFingerprint: await fingerprint(source) });
  return { planned: await planCompression(source, { ...options, ...threads }, remote, record?.facts), remote, record };
}

/** Measures the machine that fits and adds the expected duration. */
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
