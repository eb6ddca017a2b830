/**
 * GPTQ as its paper and its public programs have it by default, for comparison with our rounding (src/linalg/round-with-feedback.ts):
 * columns in their order, a symmetric scale from the largest value of a group at the time when its first column is rounded, and 1 %
 * of the mean diagonal of G added to it.
 */
import { createFeedback } from '../src/linalg/error-feedback.js';
import { addScaled } from '../src/linalg/vectors.js';

const DAMPING = 0.01;

/**
 * Rounds a matrix to integers of `width` bits.
 * @param values W, (rows, cols) f32, row-major
 * @param gram G, (cols, cols)
 * @returns the values that the codes mean, (rows, cols) f32; scales are rounded by `roundScale`
 */
export function publishedGptq(
  values: Float32Array,
  gram: Float32Array,
  { width, scaleGroup }: { readonly width: number; readonly scaleGroup: number },
  roundScale: (scale: number) => number,
): Float32Array {
  const cols = Math.round(Math.sqrt(gram.length));
  const { transposed } = createFeedback(gram, cols, DAMPING);
  // Uᵀ by columns: what the error of a column adds to those after it.
  const U = new Float64Array(cols * cols);
  for (let j = 0; j < cols; j++) for (let i = 0; i < j; i++) U[i * cols + j] = transposed[j * cols + i] as number;
  const half = 2 ** (width - 1);
  const result = new Float32Array(values.length);
  for (let at = 0; at < values.length; at += cols) {
    const wanted = Float64Array.from(values.subarray(at, at + cols));
    let scale = 1;
    for (let j = 0; j < cols; j++) {
      if (j % scaleGroup === 0) {
        const group = wanted.subarray(j, j + scaleGroup);
        scale = roundScale(group.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / (half - 0.5)) || 1;
      }
      const code = Math.min(half - 1, Math.max(-half, Math.round((wanted[j] as number) / scale)));
      result[at + j] = code * scale;
      const error = (values[at + j] as number) - code * scale;
      addScaled(wanted, j + 1, error, U, j * cols + j + 1, cols - j - 1);
    }
  }
  return result;
}
