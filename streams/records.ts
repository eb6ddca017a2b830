/** What flows between the stages. Every record with data has a size in bytes, which is what backpressure counts. */
import type { GroupPlan } from '../src/conversion/group-plan.js';
import type { FittedGroupReport, GroupReport, KeptGroupReport } from '../src/conversion/run-report.js';
import type { LossPoint } from '../src/methods/loss-curve.js';
import type { SquaredError } from './compute/squared-error.js';

/** Memory that a record holds. */
export interface Held {
  /** Gives the memory back to the budget it was taken from. Calling it again does nothing. */
  release(): void;
}

/** One expert's weights as stored: what `readMatrix` returns. */
export interface TensorRecord extends Held {
  readonly group: GroupPlan;
  readonly expert: number;
  readonly data: Uint8Array<ArrayBuffer>;
}

/** All experts of a group as stored, in expert order. A stage that does not pass a group on calls its `release`. */
export interface ExpertGroup extends Held {
  readonly group: GroupPlan;
  readonly experts: ReadonlyArray<Uint8Array<ArrayBuffer>>;
}

export interface NormalisedGroup extends ExpertGroup {
  /**
   * The standard deviation of all weights of the layer and projection. Undefined where the group is all of these: then the
   * job finds it while it decodes them.
   */
  readonly sigma: number | undefined;
}

/** One expert as it is written, with the error of exactly these bytes. */
export interface FoldedExpert extends SquaredError {
  readonly expert: number;
  /** Its factors by name, σ folded in; or its rebuilt weights, under the name `weights`. */
  readonly tensors: Readonly<Record<string, Uint8Array>>;
}

/** A fitted group. Its experts come one at a time, so that they are never all in memory. */
export interface FittedGroup extends Held {
  readonly group: GroupPlan;
  readonly sigma: number;
  /** The factors that the experts share, by name, in the group's dtype. */
  readonly shared: Readonly<Record<string, Uint8Array>>;
  readonly steps: number;
  /** The loss at some of the steps; absent where it is not known. */
  readonly losses?: readonly LossPoint[] | undefined;
  readonly seconds: number;
  /** The relative error, where it is above `--max-error`: then the experts are the source's weights. */
  readonly keptError?: number | undefined;
  /** In expert order. To be iterated once. */
  readonly experts: AsyncIterable<FoldedExpert>;
}

/** Part of an output tensor, `offset` bytes into it. */
export interface OutputChunk {
  readonly tensor: string;
  readonly offset: number;
  readonly data: Uint8Array;
  /** Called once the data is written, or not needed: its memory is then used again. */
  readonly release?: () => void;
}

/** All chunks of a group have passed. */
export interface FinishedGroup {
  readonly finished: GroupReport | FittedGroupReport | KeptGroupReport;
}

/** What the sink takes. */
export type OutputRecord = OutputChunk | FinishedGroup;
