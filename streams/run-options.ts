/** A run's options beside its settings, the progress it reports, and its result. The library prints nothing. */

import type { CalibrationPlan, CalibrationProgress } from '../src/calibration/pass-plan.js';
import type { CalibrationRecord } from '../src/calibration/record.js';
import type { TimedPlan } from '../src/conversion/estimate.js';
import type { FitSlice } from '../src/conversion/fit-slices.js';
import type { GroupKey } from '../src/conversion/group-plan.js';
import type { GroupReport, StoredReport } from '../src/conversion/run-report.js';
import type { FileSystem } from '../src/file-system.js';
import type { FitStep } from '../src/methods/method.js';
import type { WebOptions } from '../src/sources/web/web-options.js';
import type { OwnStage } from './flow/own-stage.js';
import type { StageClocks } from './flow/stage-clock.js';
import type { PeerOptions } from './machines/peer-options.js';
import type { NormalisedGroup } from './records.js';

/** A step of a group's fit. */
export interface StepProgress extends FitStep, GroupKey {}

/** An expert of a fitted group is being written. */
export interface FoldProgress extends GroupKey {
  readonly expert: number;
  readonly experts: number;
}

/** The parts of a run that progress tells of. */
export type Phase = 'resume' | 'check' | 'probe' | 'sensitivity' | 'convert' | 'send' | 'verify' | 'copy';

/** What a run tells while it works. `kind` says which of these it is. */
export type Progress =
  /** The plan, before the work begins. */
  | { kind: 'plan'; plan: TimedPlan }
  /**
   * A part of the run begins. `groups` and `bytes` are its totals. Short fits for an allocation are the phase `probe`. In the
   * phase `sensitivity`, which follows them, parts of the work are counted in place of bytes.
   */
  | { kind: 'phase'; phase: Phase; groups: number; bytes: number }
  /** Bytes written or compared so far. */
  | { kind: 'bytes'; bytes: number }
  | ({ kind: 'step' } & StepProgress)
  /** A fitted group is being written, expert by expert. */
  | ({ kind: 'fold' } & FoldProgress)
  /** A finished group, and the number of its bases if it is a short fit of an allocation. */
  | { kind: 'group'; report: GroupReport; bases?: number }
  /** The plan of a record that is made while it is used, before everything else. */
  | { kind: 'record'; plan: CalibrationPlan }
  /** The model runs for such a record, beside the work of the phase. */
  | ({ kind: 'layer' } & CalibrationProgress)
  /** A remote worker is lost. Another one repeats its group. */
  | { kind: 'lost'; worker: string; reason: Error };

/** Callbacks and connections of any operation. */
export interface RunHooks {
  readonly onProgress?: (progress: Progress) => void;
  /** Aborting stops the run. Finished work is kept, and the same run resumes from it. */
  readonly signal?: AbortSignal;
  /** Token, certificates and timeouts for locations that are URLs. */
  readonly peers?: PeerOptions;
  /** Measures how each stage of the pipeline spends its time. */
  readonly clocks?: StageClocks;
}

/** Options of a run that writes a result. */
export interface RunOptions extends RunHooks {
  /** Replaces the files that an earlier run left in the output folder. */
  readonly force?: boolean;
  /** Writes a result that has more bytes than its source. Otherwise it is refused. */
  readonly allowLarger?: boolean;
  /** Seconds between two saves of a running fit's state; default 120. */
  readonly saveEvery?: number | undefined;
  /** File operations for the source and the result; default: those of the system. Tests pass their own. */
  readonly fileSystem?: FileSystem;
  /**
   * A stage of the caller, between normalising and fitting. It may drop groups: their weights are then copied unchanged, which only
   * standard weights (`format: 'hf'`) can. Otherwise a `DroppedGroupError` ends the run after its last group.
   */
  readonly ownStage?: OwnStage<NormalisedGroup> | undefined;
  /**
   * A record that is made while it is used; `calibration` then names its folder. It is asked for layers in rising order, and each is
   * released when the work on it is finished. The caller closes it.
   */
  readonly record?: CalibrationRecord | undefined;
  /** Settings and waits for a place on the hub or in S3 that the result goes to. */
  readonly web?: WebOptions | undefined;
  /** For `fitFactors`: fits only this slice of the groups, into a folder that other processes fill at the same time. */
  readonly slice?: FitSlice | undefined;
  /** URLs of the machines that fit (`mobe worker`). Without any, this machine fits. */
  readonly workers?: readonly string[];
}

/** The report of a run's result. */
export interface RunResult extends StoredReport {
  /** True if the same result was already there, so that nothing was done. */
  readonly already: boolean;
  /** Sentences on files that were not read or not copied, and on differences between the config and the tensors. */
  readonly notes: readonly string[];
}
