/** What a run is given beside its settings, what it tells while it works, and what it returns. The library prints nothing. */

import type { GroupKey } from '../src/conversion/group-plan.js';
import type { GroupReport, StoredReport } from '../src/conversion/run-report.js';
import type { FileSystem } from '../src/file-system.js';
import type { FitStep } from '../src/methods/method.js';
import type { OwnStage } from './flow/own-stage.js';
import type { StageClocks } from './flow/stage-clock.js';
import type { PeerOptions } from './machines/peer-options.js';
import type { TimedPlan } from './operations/plan.js';
import type { NormalisedGroup } from './records.js';

export interface StepProgress extends FitStep, GroupKey {}

export interface FoldProgress extends GroupKey {
  readonly expert: number;
  readonly experts: number;
}

export type Progress =
  /** What is about to be done. */
  | { kind: 'plan'; plan: TimedPlan }
  /** A part of the run begins; `total` in bytes or groups. */
  | { kind: 'phase'; phase: 'resume' | 'check' | 'convert' | 'verify' | 'copy'; groups: number; bytes: number }
  /** Bytes written, or compared, so far. */
  | { kind: 'bytes'; bytes: number }
  | ({ kind: 'step' } & StepProgress)
  /** A fitted group is being written, expert by expert. */
  | ({ kind: 'fold' } & FoldProgress)
  | { kind: 'group'; report: GroupReport }
  /** A worker elsewhere is gone; what it had is done again by another. */
  | { kind: 'lost'; worker: string; reason: Error };

export interface RunHooks {
  readonly onProgress?: (progress: Progress) => void;
  /** Aborting stops the run; what it had finished is kept, and the same run goes on from there. */
  readonly signal?: AbortSignal;
  /** How other machines are spoken to, where a location is a URL. */
  readonly peers?: PeerOptions;
  /** Measures what each stage of the dataflow does with its time. */
  readonly clocks?: StageClocks;
}

export interface RunOptions extends RunHooks {
  /** Replace what an earlier run left in the output folder. */
  readonly force?: boolean;
  /** Seconds between two saves of a running fit; default 120. */
  readonly saveEvery?: number | undefined;
  /** What the source is read and the result written with. */
  readonly fileSystem?: FileSystem;
  /** A stage of the caller's own between normalising and fitting. It may drop groups: their weights are then kept as they are. */
  readonly ownStage?: OwnStage<NormalisedGroup> | undefined;
  /** URLs of the machines that fit (`mobe worker`); none: this one does. */
  readonly workers?: readonly string[];
}

export interface RunResult extends StoredReport {
  /** The very result was there already; nothing was done. */
  readonly already: boolean;
}
