/** What flows between the stages. Every record with data knows its size: backpressure counts bytes. */
import type { GroupPlan } from '../src/conversion/group-plan.js';
import type { LossPoint } from '../src/methods/loss-curve.js';
import type { FoldedExpert } from './compute/compute.js';

/** One expert's dense weights, as `readMatrix` reads them. */
export interface TensorRecord {
  readonly group: GroupPlan;
  readonly expert: number;
  readonly data: Uint8Array<ArrayBuffer>;
}

/** All experts of a group, likewise, in expert order. */
export interface ExpertGroup {
  readonly group: GroupPlan;
  readonly experts: ReadonlyArray<Uint8Array<ArrayBuffer>>;
}

/** With the scale that makes its weights of unit variance. */
export interface NormalisedGroup extends ExpertGroup {
  /** Standard deviation over all the weights of the layer and projection. */
  readonly sigma: number;
}

/** A fitted group. A and the rebuilt weights are handed out one expert at a time, so that they are never all in memory. */
export interface Factorization {
  readonly group: GroupPlan;
  readonly sigma: number;
  /** B, (m, r, d), in the group's dtype. */
  readonly bases: Uint8Array;
  /** α, (n, m), in the group's dtype. */
  readonly coefficients: Uint8Array;
  readonly steps: number;
  /** Where the fit was watched. */
  readonly losses?: readonly LossPoint[];
  readonly seconds: number;
  /** A·σ (p, r), or Ŵ (p, d), of one expert in the group's dtype, with the error of exactly these bytes. */
  expert(expert: number): Promise<FoldedExpert>;
  /** Gives back the worker and the memory. */
  release(): void;
}

/** Part of an output tensor, `offset` bytes into it. */
export interface OutputChunk {
  readonly tensor: string;
  readonly offset: number;
  readonly data: Uint8Array;
  /** Called once the data is written, or not needed: its memory is then used again. */
  readonly release?: () => void;
}
