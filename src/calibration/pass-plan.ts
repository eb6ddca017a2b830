/** The plan and the progress of a calibration pass. */

/** The plan of a calibration. */
export interface CalibrationPlan {
  readonly sequences: number;
  /** Tokens of a sequence. */
  readonly length: number;
  readonly tokens: number;
  /** Tokens that an expert gets on average, in the layer where they are fewest. */
  readonly tokensPerExpert: number;
  /** The same in units of the width. */
  readonly tokensOfWidth: number;
  /** The layers with experts. */
  readonly layers: number;
  /** Bytes of the finished record. */
  readonly recordBytes: number;
  /** Bytes of hidden states, which are needed only during the run. */
  readonly workBytes: number;
  /** The most memory that the pass takes, of `maxMemory`. */
  readonly memoryBytes: number;
  /** Tokens that go through a layer at once. */
  readonly batchTokens: number;
  /** Sentences on what differs from what is usual. */
  readonly notes: readonly string[];
}

/** How far a calibration is. */
export interface CalibrationProgress {
  /** The running layer. Layers after the last one with experts are not run. */
  readonly layer: number;
  readonly layers: number;
  /** Sequences that the layer has done. */
  readonly done: number;
  readonly sequences: number;
}
