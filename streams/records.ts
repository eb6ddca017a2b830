/** The records that flow between the stages. Backpressure counts their bytes. */
import type { GroupMetric } from '../src/calibration/group-metric.js';
import type { Place } from '../src/conversion/group-places.js';
import type { GroupPlan } from '../src/conversion/group-plan.js';
import type {
  FittedGroupReport,
  GroupReport,
  KeptGroupReport,
  MetricFacts,
  RepairedGroupReport,
} from '../src/conversion/run-report.js';
import type { LossPoint } from '../src/methods/loss-curve.js';
import type { SquaredError } from './compute/squared-error.js';

/** Memory that a record holds. */
export interface Held {
  /** Gives the memory back to the budget it was taken from. Calling it again does nothing. */
  release(): void;
}

/** One expert's weights as stored, in the bytes that `readMatrix` returns. */
export interface TensorRecord extends Held {
  readonly group: GroupPlan;
  readonly expert: number;
  readonly data: Uint8Array<ArrayBuffer>;
}

/** All experts of a group as stored, in expert order. A stage that does not pass a group on must call its `release`. */
export interface ExpertGroup extends Held {
  readonly group: GroupPlan;
  readonly experts: ReadonlyArray<Uint8Array<ArrayBuffer>>;
}

/** A group and its σ. Its weights are still as stored: the job divides them by σ when it decodes them. */
export interface NormalisedGroup extends ExpertGroup {
  /**
   * The standard deviation of all weights of the layer and projection. Undefined if the group holds all of these: then the job
   * measures σ while it decodes.
   */
  readonly sigma: number | undefined;
}

/** A group with the metric of its fit. */
export interface WeighedGroup extends NormalisedGroup {
  /** Undefined if the group is fitted without one. */
  readonly metric?: WeighedMetric | undefined;
}

/** A metric as a job takes it, and what a report says of it. */
export interface WeighedMetric extends GroupMetric {
  /** Whether the shared factors are fitted in it too, or only those of experts. */
  readonly fit: boolean;
  readonly facts: MetricFacts;
}

/** One expert as it is written, and the squared error of exactly these bytes. */
export interface FoldedExpert extends SquaredError {
  readonly expert: number;
  /** The expert's factors by name, with σ folded in; or its weights, under the name `weights`, with their `scales` if quantised. */
  readonly tensors: Readonly<Record<string, Uint8Array>>;
  /** The squared error in the group's metric, if it has one. */
  readonly metric?: SquaredError | undefined;
}

/** A fitted group. Its experts are computed one at a time, so that they are never all in memory. */
export interface FittedGroup extends Held {
  readonly group: GroupPlan;
  readonly sigma: number;
  /** The factors that the experts share, by name, in the group's dtype. */
  readonly shared: Readonly<Record<string, Uint8Array>>;
  readonly steps: number;
  /** The loss at some of the steps; absent if the method reports none. */
  readonly losses?: readonly LossPoint[] | undefined;
  /** Duration of the fit. */
  readonly seconds: number;
  /** The relative error, if it is above `--max-error`. Then the experts are the source's weights. */
  readonly keptError?: number | undefined;
  /** The facts of its metric, if it has one. */
  readonly metric?: MetricFacts | undefined;
  /** The experts in order. Can be iterated only once. */
  readonly experts: AsyncIterable<FoldedExpert>;
}

/** Part of an output tensor. `offset` is in bytes from the tensor's start. */
export interface OutputChunk {
  readonly tensor: string;
  readonly offset: number;
  readonly data: Uint8Array;
  /** Set if the data is a matrix of a slice. The range is that of the whole slice; `joinSlices` puts it together. */
  readonly part?: NonNullable<Place['part']>;
  /** To be called when the data is written or no longer needed. Its memory is then reused. */
  readonly release?: () => void;
}

/** The report of a group. It follows all chunks of the group. */
export interface FinishedGroup {
  readonly finished: GroupReport | FittedGroupReport | KeptGroupReport | RepairedGroupReport;
}

/** The input of the sink. */
export type OutputRecord = OutputChunk | FinishedGroup;
