/** Rounds weights to integers whose groups share scales, as compressed-tensors packs them. */
import { decodeRows, type StoredEncoding, storedBytes } from '../../checkpoint/encoding.js';
import { type EncodingMetric, encodeInMetric } from '../encode-in-metric.js';

/** The form of the integers. */
export interface IntegerForm {
  /** The bits of a weight. */
  readonly width: number;
  /** The columns of a row that share a BF16 scale. */
  readonly scaleGroup: number;
}

/** The encoding of weights as symmetric integers in 32-bit words: "pack-quantized". */
export const integerEncoding = ({ width, scaleGroup }: IntegerForm): StoredEncoding => ({
  kind: 'packed',
  bits: width,
  scaleDtype: 'BF16',
  groupSize: scaleGroup,
  zeroRows: 0,
  reordered: false,
});

/**
 * Rounds a matrix: by GPTQ's rule in a metric, else each weight to the nearest with searched scales.
 * @param values W, (rows, cols) f32, row-major
 * @param metric its Gram matrix is the covariance of the inputs
 * @returns the values that the stored codes mean, (rows, cols) f32
 */
export function quantiseMatrix(
  values: Float32Array,
  { rows, cols }: { readonly rows: number; readonly cols: number },
  form: IntegerForm,
  metric?: EncodingMetric,
): Float32Array {
  const encoding = integerEncoding(form);
  const bytes = encodeInMetric(encoding, { rows, cols }, values, 'a matrix', metric);
  const { data } = storedBytes(encoding, rows, cols);
  const rounded = new Float32Array(values.length);
  decodeRows(encoding, cols, { first: 0, count: rows }, bytes.subarray(0, data), bytes.subarray(data), rounded);
  return rounded;
}
