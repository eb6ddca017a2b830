/**
 * A calibration record: what fits need to know of a model's activations on a text. `mobe calibrate` writes it, a file for each
 * layer. Letters: t tokens, d width, n experts, k experts a token.
 */
import { z } from 'zod';

/** The file that makes a record complete. It is written last. */
export const RECORD_FILE = 'calibration.json';

/** The file with the token numbers: `tokens` I32 (sequences, length). */
export const TOKENS_FILE = 'tokens.safetensors';

/**
 * The file of a layer. It holds `input` BF16 (t, d), the input of the experts and the router; `experts` I32 (t, k), the chosen
 * experts; `weights` F32 (t, k), by which their outputs are multiplied; and `scale` F32 (t), 1/rms of the residual stream after
 * the layer.
 */
export const layerFile = (layer: number): string => `layer-${String(layer).padStart(3, '0')}.safetensors`;

/** Folders of a record in which allocations keep short fits and what was measured with them have names with this prefix. */
export const PROBES_PREFIX = 'probes-';

/** The contents of `RECORD_FILE`. */
export const recordFacts = z.looseObject({
  version: z.literal(1),
  /** The source's fingerprint. */
  sourceFingerprint: z.string(),
  /** t = sequences · length */
  sequences: z.int().positive(),
  /** Tokens of a sequence. */
  length: z.int().positive(),
  seed: z.int().nonnegative(),
  /** The texts from which the sequences were chosen; none if the model wrote them. */
  texts: z.array(z.looseObject({ name: z.string(), bytes: z.int().nonnegative(), sha256: z.string() })),
  /** Whether the model wrote the sequences itself. */
  fromModel: z.boolean().optional(),
  /** The layers that have experts. */
  layers: z.array(z.int().nonnegative()),
});
/** The contents of `RECORD_FILE`: the source, the texts and the sizes of a record. */
export type RecordFacts = Readonly<z.infer<typeof recordFacts>>;

/** The record of one layer. */
export interface LayerRecord {
  /** The file, for messages. */
  readonly name: string;
  readonly layer: number;
  /** t */
  readonly tokens: number;
  /** d */
  readonly width: number;
  /** k */
  readonly expertsPerToken: number;
  /** (t, k) */
  readonly experts: Int32Array;
  /** (t, k) */
  readonly weights: Float32Array;
  /** (t): 1/rms of the residual stream after the layer */
  readonly scale: Float32Array;
  /**
   * Reads the inputs of some tokens, decoded.
   * @param tokens rising numbers
   * @param target (tokens.length, d)
   */
  readInputs(tokens: ArrayLike<number>, target: Float32Array): Promise<void>;
}

/** An open record. */
export interface CalibrationRecord {
  /** The folder, for messages. */
  readonly name: string;
  readonly facts: RecordFacts;
  /** Opens a layer, and waits for it if it is being recorded. Throws a `RecordError` if the record does not have it. */
  layer(number: number): Promise<LayerRecord>;
  /** Tells that a layer is no longer needed. A record that is made for one run deletes it. */
  release(number: number): Promise<void>;
  /** The token numbers, (sequences, length). */
  tokens(): Promise<Int32Array>;
  close(): Promise<void>;
}
