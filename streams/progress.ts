/** What a run tells while it works. The library prints nothing; whoever started it may listen. */
import type { GroupReport } from '../src/conversion/report.js';
import type { TimedPlan } from './plan.js';

export interface StepProgress {
  readonly layer: number;
  readonly projection: string;
  readonly step: number;
  readonly steps: number;
  /** Mean squared error in units of σ². */
  readonly loss: number;
}

export type Progress =
  /** What is about to be done. */
  | { kind: 'plan'; plan: TimedPlan }
  /** A part of the run begins; `total` in bytes or groups. */
  | { kind: 'phase'; phase: 'check' | 'convert' | 'verify'; groups: number; bytes: number }
  /** Groups read and found sound. */
  | { kind: 'checked'; groups: number }
  /** Bytes written, or compared, so far. */
  | { kind: 'bytes'; bytes: number }
  | ({ kind: 'step' } & StepProgress)
  | { kind: 'group'; report: GroupReport };

export interface RunHooks {
  readonly onProgress?: (progress: Progress) => void;
  /** Aborting stops the run; what it had not finished is removed. */
  readonly signal?: AbortSignal;
}
