/** What a run did, as it is printed, returned and stored beside the result. */
import type { EngineFacts } from '../engine/engine.js';
import type { LossPoint } from '../methods/loss-curve.js';
import { type GroupKey, groupLabel } from './group-plan.js';

/** The record in an output folder. Timings in it vary from run to run; every other file is reproducible. */
export { REPORT_FILE } from '../checkpoint/side-files.js';

export interface GroupReport extends GroupKey {
  readonly seconds: number;
}

/** A group that was fitted, now or before. */
export interface FittedGroupReport extends GroupReport {
  /** ‖W − Ŵ‖/‖W‖ over the group, of what was written. */
  readonly relativeError: number;
  /** Mean of (W − Ŵ)², in the weights' own units. */
  readonly mse: number;
  /** Standard deviation of the group's weights. */
  readonly sigma: number;
  readonly steps: number;
  /** How the loss fell; not known of imported factors, nor in records of earlier versions. */
  readonly losses?: readonly LossPoint[] | undefined;
}

/** A group that was not to be fitted, or that the fit described worse than `--max-error` allows: its weights are those of the source. */
export interface KeptGroupReport extends GroupReport {
  /** ‖W − Ŵ‖/‖W‖ that the fit reached; nothing of it was written. NaN is null in JSON. */
  readonly keptError: number | null;
  /** A stage of the program's own dropped it; there was no fit. */
  readonly dropped?: true;
}

export const isKept = (report: GroupReport): report is KeptGroupReport => 'keptError' in report;

/** Half of the norm gone: trained experts lose 0.15 to 0.3 at the default size. What is above is told loudly. */
export const POOR_FIT = 0.5;

/** What whoever runs a conversion must hear of its groups, a sentence each. */
export function fitWarnings(groups: readonly GroupReport[]): string[] {
  const poor = groups
    .filter(isFitted)
    .filter(({ relativeError }) => !(relativeError <= POOR_FIT))
    .map(
      (group) =>
        `${groupLabel(group)} fits badly: its relative error is ${group.relativeError.toFixed(4)}, above ${POOR_FIT}. Use more bases or steps, or keep it uncompressed with --max-error.`,
    );
  const kept = groups
    .filter(isKept)
    .map(
      (group) =>
        `${groupLabel(group)} was kept uncompressed: ${group.dropped ? "a stage of the program's own dropped it" : `the fit's relative error is ${group.keptError?.toFixed(4) ?? 'not a number'}`}.`,
    );
  return [...poor, ...kept];
}

/** An expansion has not seen the source, so it knows no errors. */
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

export const engineRecord = ({ name, device, kind }: EngineFacts): EngineRecord => ({ name, device, kind });

/** The record beside a result. */
export interface StoredReport extends RunReport {
  readonly version: 1;
  readonly kind: 'compress' | 'export' | 'expand' | 'fit';
  readonly sourceFingerprint: string;
  /** What did the arithmetic, where there was any to do. */
  readonly engine?: EngineRecord;
  /** What decided the bytes of the result. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Groups that fit badly, or were kept uncompressed; absent where there are none. */
  readonly warnings?: readonly string[];
  /** Every file of the result, this record included. */
  readonly files: readonly string[];
}

/** As JSON, a point of a loss curve a line. */
export const encodeReport = (report: StoredReport): string =>
  JSON.stringify(report, null, 2).replace(/\[\n\s+([^\s,]+),\n\s+([^\s,]+)\n\s+\]/g, '[$1, $2]');

/** Peak resident memory of this process so far. */
export const peakRssBytes = (): number => process.resourceUsage().maxRSS * 1024;
