/**
 * Bases in parts. A step gives new values for arrays as large as all bases. If these are large, the step takes some whole bases at a
 * time, so that its intermediate results, and what an engine copies of its results, are only as large as a part. Given the gradient,
 * bases move independently of each other. The parts follow from the sizes of the bases alone, so a memory budget changes no bits.
 */
import type { EngineFacts, EngineTensor } from '../../engine/engine.js';
import { type BatchRange, splitBatches } from './batches.js';
import type { Problem } from './problem.js';

/** The most bytes of a part, unless one basis has more. */
const PART_BYTES = 16 * 2 ** 20;

/** The parts of a group's bases. Only engines that write parts have several. */
export function basisParts(
  { bases: m, rank: r, cols: d }: Pick<Problem, 'bases' | 'rank' | 'cols'>,
  { writesParts = false }: Pick<EngineFacts, 'writesParts'>,
  partBytes = PART_BYTES,
): BatchRange[] {
  return splitBatches(m, writesParts ? Math.floor(partBytes / (4 * r * d)) : m);
}

/** The numbers of some columns of a matrix with rows of `cols`, for `count` rows from `first` on. */
export function columnsOf(
  matrix: Float32Array,
  cols: number,
  rows: BatchRange,
  { first, count }: BatchRange,
): Float32Array {
  const part = new Float32Array(rows.count * count);
  for (let row = 0; row < rows.count; row++) {
    const start = (rows.first + row) * cols + first;
    part.set(matrix.subarray(start, start + count), row * count);
  }
  return part;
}

/** The rows of a tensor that belong to a part: the tensor itself if the part is all of it. */
export function partOf(tensor: EngineTensor, { first, count }: BatchRange): EngineTensor {
  if (count === tensor.shape[0]) return tensor;
  const part = tensor.part?.(first, count);
  if (!part) throw new RangeError('the engine has no parts of tensors');
  return part;
}
