/** The report of a run, as it is printed, returned and stored with the result. */
import type { EngineFacts } from '../engine/engine.js';
import type { LossPoint } from '../methods/loss-curve.js';
import { formatRanges, type GroupKey, groupLabel } from './group-plan.js';

/** The file name of the record. Its timings differ from run to run. All other files are reproducible. */
export { REPORT_FILE } from '../checkpoint/side-files.js';

/** The report of a group. */
export interface GroupReport extends GroupKey {
  readonly seconds: number;
}

/** Facts about a group's metric. */
export interface MetricFacts {
  /** The fewest and the most tokens of an expert. */
  readonly tokens: readonly [least: number, most: number];
  /** The least and the most share ρ of the identity in an expert's covariances. */
  readonly shrinkage: readonly [least: number, most: number];
  /** The experts that no token reached. They have the covariance of all tokens. Absent if there are none. */
  readonly unreached?: readonly number[] | undefined;
}

/** A group's error in its metric. */
export interface MetricReport extends MetricFacts {
  /** (Σ tr(P R C Rᵀ) / Σ tr(P W C Wᵀ))^½ over the experts, with R = W − Ŵ and Ŵ as it was written. */
  readonly relativeError: number;
}

/** The report of a group that was fitted, in this run or an earlier one. */
export interface FittedGroupReport extends GroupReport {
  /** ‖W − Ŵ‖/‖W‖ over the group, with Ŵ as it was written. */
  readonly relativeError: number;
  /** Mean of (W − Ŵ)², in the units of the weights, squared. */
  readonly mse: number;
  /** Standard deviation of all weights of the group's layer and projection. */
  readonly sigma: number;
  readonly steps: number;
  /** The error in the metric of the calibration record, and facts about that; absent without one. */
  readonly metric?: MetricReport | undefined;
  /** The loss at some of the steps; absent for imported factors and in records of earlier versions. */
  readonly losses?: readonly LossPoint[] | undefined;
}

/** The report of a group that was not compressed: its error was above `--max-error`, or a caller's stage dropped it. */
export interface KeptGroupReport extends GroupReport {
  /** ‖W − Ŵ‖/‖W‖ of the fit, which was not written; null if the group was not fitted. JSON has null for NaN too. */
  readonly keptError: number | null;
  /** A stage of the program's own dropped it; there was no fit. */
  readonly dropped?: true;
}

/** The report of a dense down_proj that was fitted to the compressed gate and up. */
export interface RepairedGroupReport extends GroupReport {
  /** ‖W − W′‖/‖W‖, with W′ as it was written. */
  readonly repairedError: number;
}

/** Whether a group is dense, but not as in the source. */
export const isRepaired = (report: GroupReport): report is RepairedGroupReport => 'repairedError' in report;

/** Whether a group was not compressed. */
export const isKept = (report: GroupReport): report is KeptGroupReport => 'keptError' in report;

/** A relative error above this gives a warning. Trained experts have 0.15 to 0.3 at the default size. */
export const POOR_FIT = 0.5;

/** Warnings about groups that fit badly or were kept uncompressed, a line for each. */
export function fitWarnings(groups: readonly GroupReport[]): string[] {
  const poor = groups
    .filter(isFitted)
    .filter(({ relativeError }) => !(relativeError <= POOR_FIT))
    .map(
      (group) =>
        `${groupLabel(group)} fits badly: its relative error is ${group.relativeError.toFixed(4)}, above ${POOR_FIT}. Use more bases or steps, or keep it uncompressed: --max-error of --format hf, or of mobe export.`,
    );
  const kept = groups
    .filter(isKept)
    .map(
      (group) =>
        `${groupLabel(group)} was kept uncompressed: ${group.dropped ? "a stage of the program's own dropped it" : `the fit's relative error is ${group.keptError?.toFixed(4) ?? 'not a number'}`}.`,
    );
  const unreached = groups
    .filter(isFitted)
    .flatMap(({ metric, ...group }) =>
      metric?.unreached?.length
        ? [
            `${groupLabel(group)}: no token of the calibration text reached expert ${formatRanges(metric.unreached)}; it has the covariance of all tokens. A longer text may reach it.`,
          ]
        : [],
    );
  return [...poor, ...kept, ...unreached];
}

/** Whether a report has the error of a fit. Those of an expansion have not, because it does not read the source. */
export const isFitted = (report: GroupReport): report is FittedGroupReport => 'relativeError' in report;

/** Sizes, times and groups of a run. */
export interface RunReport {
  readonly parametersBefore: number;
  readonly parametersAfter: number;
  /** Tensor bytes, without headers. */
  readonly bytesBefore: number;
  readonly bytesAfter: number;
  readonly peakRssBytes: number;
  readonly seconds: number;
  readonly groups: readonly GroupReport[];
}

/** The engine that did the arithmetic, as a record keeps it. */
export type EngineRecord = Pick<EngineFacts, 'name' | 'device' | 'kind'>;

/** The record of an engine. */
export const engineRecord = ({ name, device, kind }: EngineFacts): EngineRecord => ({ name, device, kind });

/** The record beside a result. */
export interface StoredReport extends RunReport {
  readonly version: 1;
  readonly kind: 'compress' | 'export' | 'expand' | 'fit' | 'repair';
  readonly sourceFingerprint: string;
  /** The engine that did the arithmetic; absent if there was none. */
  readonly engine?: EngineRecord;
  /** The settings that decided the bytes of the result. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Warnings (`fitWarnings`); absent if there are none. */
  readonly warnings?: readonly string[];
  /** All files of the result, including this record. */
  readonly files: readonly string[];
}

/** Encodes a record as JSON, with each point of a loss curve on one line. */
export const encodeReport = (report: StoredReport): string =>
  JSON.stringify(report, null, 2).replace(/\[\n\s+([^\s,]+),\n\s+([^\s,]+)\n\s+\]/g, '[$1, $2]');

/** Peak resident memory of this process so far. */
export const peakRssBytes = (): number => process.resourceUsage().maxRSS * 1024;
