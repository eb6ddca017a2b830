/** Encodes matrices with error feedback. */
import { codesOf, encodeMatrix, roundScale } from '../checkpoint/encode-matrix.js';
import type { StoredEncoding } from '../checkpoint/encoding.js';
import { roundWithFeedback } from '../linalg/round-with-feedback.js';

/**
 * Encodes a matrix (rows, cols) as `encodeMatrix` does. With a metric, the error of a column is fed forward to those after it.
 * @param gram G, (cols, cols), in which the error E counts tr(E·G·Eᵀ). Without, and for floats, all errors count alike
 * @throws OverflowError if a value is not finite, or too large for the encoding. It names `label`
 */
export function encodeInMetric(
  encoding: StoredEncoding,
  { rows, cols }: { readonly rows: number; readonly cols: number },
  values: Float32Array,
  label: string,
  gram?: Float32Array,
): Uint8Array<ArrayBuffer> {
  // Values that are not finite have no place on a grid. The encoder refuses them.
  if (!gram || encoding.kind === 'float' || !values.every(Number.isFinite))
    return encodeMatrix(encoding, rows, cols, values, label);
  const { grid, blocks } = codesOf(encoding);
  const rounded = roundWithFeedback({
    values,
    gram,
    grid,
    scaleGroup: blocks.cols,
    scaleRows: blocks.rows,
    roundScale: (scale) => roundScale(blocks.dtype, scale),
  });
  return encodeMatrix(encoding, rows, cols, rounded.values, label, rounded.scales);
}
