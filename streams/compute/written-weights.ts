/** An expert's weights as they are written: floats, or in the encoding of the source. */
import { type StoredEncoding, storedBytes } from '../../src/checkpoint/encoding.js';
import { decodePart, type MatrixFormat } from '../../src/checkpoint/stored-matrix.js';
import { SCALES, WEIGHTS } from '../../src/conversion/group-places.js';
import { encodeInMetric } from '../../src/methods/encode-in-metric.js';

/** The bytes by the names of their places: `WEIGHTS`, and `SCALES` if they are quantised. */
export type WrittenTensors = Readonly<Record<string, Uint8Array<ArrayBuffer>>>;

/** Size of a matrix as stored. */
type Size = Pick<MatrixFormat, 'rows' | 'cols'>;

/** Weights and the numbers that their bytes mean. */
export interface WrittenWeights {
  readonly tensors: WrittenTensors;
  /** (rows, cols) f32 */
  readonly values: Float32Array;
}

/**
 * Encodes weights (rows, cols). Scales are searched so that each block has the least squared error. Throws `OverflowError`, which
 * names `label`.
 * @param gram the covariance of the inputs, (cols, cols), in which codes are rounded with error feedback. Floats do not regard it
 */
export function encodeWeights(
  encoding: StoredEncoding,
  { rows, cols }: Size,
  weights: Float32Array,
  label: string,
  gram?: Float32Array,
): WrittenWeights {
  const bytes = encodeInMetric(encoding, { rows, cols }, weights, label, gram && { gram });
  const values = new Float32Array(rows * cols);
  decodePart({ encoding, rows, cols }, bytes, { first: 0, count: rows }, values);
  return { tensors: byPlace(encoding, { rows, cols }, bytes), values };
}

/** The bytes of a source's weights in the encoding in which their rows are stored, as they are. */
export function sourceWeights(
  written: StoredEncoding,
  { rows, cols, encoding }: Pick<MatrixFormat, 'rows' | 'cols' | 'encoding'>,
  bytes: Uint8Array,
): WrittenTensors {
  if (encoding.kind !== 'view') return byPlace(written, { rows, cols }, bytes.slice());
  const whole = storedBytes(written, encoding.rows, cols);
  const own = storedBytes(written, rows, cols);
  const taken = new Uint8Array(own.data + own.scales);
  const { first, step } = encoding;
  // Rows whose scales are shared follow each other, so that they can be taken at once.
  const [count, height] = step === 1 ? [1, rows] : [rows, 1];
  const [before, part] = [storedBytes(written, first, cols), storedBytes(written, height, cols)];
  for (let i = 0; i < count; i++) {
    const data = before.data + i * step * part.data;
    const scales = whole.data + before.scales + i * step * part.scales;
    taken.set(bytes.subarray(data, data + part.data), i * part.data);
    taken.set(bytes.subarray(scales, scales + part.scales), own.data + i * part.scales);
  }
  return byPlace(written, { rows, cols }, taken);
}

function byPlace(encoding: StoredEncoding, { rows, cols }: Size, bytes: Uint8Array<ArrayBuffer>): WrittenTensors {
  const { data, scales } = storedBytes(encoding, rows, cols);
  if (scales === 0) return { [WEIGHTS]: bytes };
  // Two buffers of their own: each can be handed to another thread without copying.
  return { [WEIGHTS]: bytes.slice(0, data), [SCALES]: bytes.slice(data) };
}

/** The bytes of written weights as `readMatrix` would read them. */
export function joinedBytes({ [WEIGHTS]: data, [SCALES]: scales }: Readonly<Record<string, Uint8Array>>): Uint8Array {
  if (!data) throw new RangeError('there are no weights');
  if (!scales) return data;
  const bytes = new Uint8Array(data.length + scales.length);
  bytes.set(data);
  bytes.set(scales, data.length);
  return bytes;
}

/** The names and bytes of the tensors of an expert's weights. */
export function writtenSizes(encoding: StoredEncoding, { rows, cols }: Size): Map<string, number> {
  const { data, scales } = storedBytes(encoding, rows, cols);
  return new Map([[WEIGHTS, data] as const, ...(scales ? [[SCALES, scales] as const] : [])]);
}
