import { checkLayers } from '../../src/calibration/open-record.js';
import type { CalibrationRecord } from '../../src/calibration/record.js';
import { type CompressionPlan, planCompression } from '../../src/conversion/compression-plan.js';
import { estimateSeconds, type TimedPlan } from '../../src/conversion/estimate.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { askWorkers, type RemoteWorkers } from '../compute/remote-runner.js';
import type { PeerOptions } from '../machines/peer-options.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { RunOptions } from '../run-options.js';
import { measurePace } from './measure-pace.js';
import { holding, openCalibration } from './open-calibration.js';

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
  {
    peers = {},
    workers = [],
    fileSystem,
    record: own,
  }: Pick<RunOptions, 'peers' | 'workers' | 'fileSystem' | 'record'>,
  writes?: Parameters<typeof planCompression>[4],
): Promise<PlannedRun> {
  const source = await openSource(model, { peers, fileSystem });
  const remote = workers.length ? await askWorkers(workers, peers) : undefined;
  // The number of threads can change a fit's bits, so every worker must be able to give a fit the same number.
  const threads = remote && options.threads === undefined ? { threads: Math.min(...remote.threads) } : {};
  const { calibration } = options;
  const opened = calibration === undefined ? undefined : await openCalibration(calibration, source, { record: own });
  const record = opened && own ? holding(opened) : opened;
  const planned = await planCompression(source, { ...options, ...threads }, remote, record?.facts, writes);
  if (calibration !== undefined && record && !own) {
    const layers = planned.groups.map(({ layer }) => layer);
    await checkLayers(calibration, record.facts, layers);
  }
  return { planned, remote, record };
}

/** Adds the expected duration. */
export async function withEstimate(
  { planned, remote }: Pick<PlannedRun, 'planned' | 'remote'>,
  peers?: PeerOptions,
): Promise<TimedPlan> {
  return { ...planned, estimatedSeconds: estimateSeconds(planned, await measurePace(planned, remote, peers)) };
}
