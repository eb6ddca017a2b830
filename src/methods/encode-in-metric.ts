/** Encodes matrices with error feedback. */
import { codesOf, encodeMatrix, roundScale, SCALE_SHARES } from '../checkpoint/encode-matrix.js';
import type { StoredEncoding } from '../checkpoint/encoding.js';
import { roundWithFeedback } from '../linalg/round-with-feedback.js';

/** The metric in which errors count. */
export interface EncodingMetric {
  /** G, (cols, cols): the error E counts tr(E·G·Eᵀ). */
  readonly gram: Float32Array;
  /** As in `FeedbackRounding`. Formats of other programs may not expect negative scales. */
  readonly signedScales?: boolean | undefined;
}

/**
 * Encodes a matrix (rows, cols) as `encodeMatrix` does. With a metric, the error of a column is fed forward to those after it.
 * @param metric without one, and for floats, all errors count alike
 * @throws OverflowError if a value is not finite, or too large for the encoding. It names `label`
 */
export function encodeInMetric(
  encoding: StoredEncoding,
  { rows, cols }: { readonly rows: number; readonly cols: number },
  values: Float32Array,
  label: string,
  metric?: EncodingMetric,
): Uint8Array<ArrayBuffer> {
  // Values that are not finite have no place on a grid. The encoder refuses them.
  if (!metric || encoding.kind === 'float' || !values.every(Number.isFinite))
    return encodeMatrix(encoding, rows, cols, values, label);
  const { grid, blocks } = codesOf(encoding);
  const rounded = roundWithFeedback({
    ...metric,
    values,
    grid,
    scaleGroup: blocks.cols,
    scaleRows: blocks.rows,
    shares: SCALE_SHARES,
    roundScale: (scale) => roundScale(blocks, scale),
  });
  return encodeMatrix(encoding, rows, cols, rounded.values, label, rounded.scales);
}
