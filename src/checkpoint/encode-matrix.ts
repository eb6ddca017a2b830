/** Encodes matrices of floats as they are stored: the inverse of `decodeRows` for the encodings that this program writes. */
import { OverflowError } from '../errors.js';
import { encodeFinite } from './codec.js';
import { describeEncoding, type Encoding, type StoredEncoding, storedBytes } from './encoding.js';
import { type BlockScales, decodeScales, encodeScales, powersOfTwo } from './encodings/block-scales.js';
import { type CodeGrid, E2M1_GRID, E4M3_GRID, E5M2_GRID, integerGrid } from './encodings/code-grid.js';

/** Blocks with a scale each, and how the codes of a row become bytes. */
interface Writer {
  readonly grid: CodeGrid;
  readonly blocks: BlockScales;
  /** The bits of a code. Codes of a row follow each other without gaps, the lowest bits first. */
  readonly bits: number;
}

/**
 * Whether `encodeMatrix` writes this encoding. It writes no parts or transposes of stored matrices, no zero points, no
 * groups in another order, and no NVFP4: gate and up of an expert share the scale of the whole matrix there.
 */
export function canEncode(encoding: Encoding): encoding is StoredEncoding {
  switch (encoding.kind) {
    case 'float':
    case 'codes':
      return true;
    case 'fp4':
      return encoding.matrixScale === 'none';
    case 'packed':
      return encoding.zeroRows === 0 && !encoding.reordered;
    default:
      return false;
  }
}

function writerOf(encoding: StoredEncoding): Writer {
  if (canEncode(encoding))
    switch (encoding.kind) {
      case 'codes': {
        const { dtype, scaleDtype, blockRows: rows, blockCols: cols, powersOfTwo } = encoding;
        const grid = dtype === 'I8' ? INT8 : dtype === 'F8_E4M3' ? E4M3_GRID : E5M2_GRID;
        return { grid, blocks: { dtype: scaleDtype, rows, cols, powersOfTwo }, bits: 8 };
      }
      case 'fp4':
        return { grid: E2M1_GRID, blocks: { dtype: encoding.scaleDtype, rows: 1, cols: encoding.groupSize }, bits: 4 };
      case 'packed': {
        const { bits, scaleDtype, groupSize } = encoding;
        const blocks = { dtype: scaleDtype, rows: 1, cols: groupSize };
        return { grid: integerGrid(bits, 2 ** (bits - 1)), blocks, bits };
      }
    }
  throw new RangeError(`no codes with scales are written in ${describeEncoding(encoding)}`);
}

/** Two's complement. */
const INT8 = integerGrid(8, 0);

/** The values that codes of an encoding can have, and the blocks that share a scale. */
export function codesOf(encoding: StoredEncoding): {
  readonly grid: Pick<CodeGrid, 'largest' | 'round'>;
  readonly blocks: BlockScales;
} {
  const { grid, blocks } = writerOf(encoding);
  return { grid, blocks };
}

/**
 * A scale as blocks can have it: rounded to the nearest number of its dtype, or up to a power of two in e8m0 and where all scales are
 * such. A positive scale stays positive. One that is too large for its dtype becomes infinite or NaN.
 */
export const roundScale = (blocks: ScaleRules, scale: number): number =>
  roundScales(blocks, Float32Array.of(scale))[0] as number;

/** The numbers that scales can be. */
type ScaleRules = Pick<BlockScales, 'dtype' | 'powersOfTwo'>;

const roundScales = ({ dtype, powersOfTwo: only }: ScaleRules, scales: Float32Array): Float32Array =>
  decodeScales(dtype, encodeScales(dtype, only ? powersOfTwo(scales) : scales));

/** Scales that are tried, as shares of the one with which the largest weight of a block becomes the largest code. */
export const SCALE_SHARES: readonly number[] = Array.from({ length: 11 }, (_, i) => (20 - i) / 20);

/**
 * Encodes a matrix (rows, cols), row-major: the bytes of its data, then those of its scales, as `readMatrix` returns them. Without
 * `scales`, each block gets the one of `SCALE_SHARES` that leaves the least squared error, the largest of equals. A block of zeros gets scale 1.
 *
 * @param label the tensor that errors name
 * @param scales (⌈rows / rows of a block⌉, ⌈cols / cols of a block⌉), exact in their dtype; negative ones turn the sign of codes. Codes are value / scale,
 *   rounded to the nearest, ties to even; what is beyond the last code becomes that.
 * @throws OverflowError if a value is not finite, or a scale is too large for its dtype
 * @throws RangeError if the encoding cannot be written (see `canEncode`), or sizes or scales do not fit. This is a mistake of the caller.
 */
export function encodeMatrix(
  encoding: StoredEncoding,
  rows: number,
  cols: number,
  values: Float32Array,
  label: string,
  scales?: Float32Array,
): Uint8Array<ArrayBuffer> {
  if (values.length !== rows * cols)
    throw new RangeError(`${values.length} numbers are no matrix of ${rows} × ${cols}`);
  if (encoding.kind === 'float') return encodeFinite(encoding.dtype, values, label);
  const writer = writerOf(encoding);
  if (!holdsFinite(values)) throw new OverflowError(label, describeEncoding(encoding));
  const sizes = storedBytes(encoding, rows, cols);
  const chosen = scales ?? searchScales(writer, rows, cols, values);
  const bytes = new Uint8Array(sizes.data + sizes.scales);
  const scaleBytes = encodeScales(writer.blocks.dtype, chosen);
  if (scaleBytes.length !== sizes.scales)
    throw new RangeError(
      `${chosen.length} scales, where ${describeEncoding(encoding)} of ${rows} × ${cols} has others`,
    );
  const exact = decodeScales(writer.blocks.dtype, scaleBytes);
  const allowed = roundScales(writer.blocks, chosen);
  for (let i = 0; i < exact.length; i++) {
    if (!Number.isFinite(exact[i])) throw new OverflowError(label, describeEncoding(encoding));
    if (allowed[i] !== chosen[i]) throw new RangeError(`scale ${chosen[i]} is no ${describeScales(writer.blocks)}`);
  }
  bytes.set(scaleBytes, sizes.data);
  writeCodes(writer, rows, cols, values, exact, bytes.subarray(0, sizes.data));
  return bytes;
}

const describeScales = ({ dtype, powersOfTwo: only }: ScaleRules): string =>
  only ? `power of two in ${dtype}` : dtype;

function holdsFinite(values: Float32Array): boolean {
  let zero = 0;
  for (let i = 0; i < values.length; i++) zero += (values[i] as number) - (values[i] as number);
  return zero === 0; // NaN if a value is NaN or infinite
}

/** Chooses the scales of a matrix. Those that are too large for their dtype are infinite or NaN. */
function searchScales({ grid, blocks }: Writer, rows: number, cols: number, values: Float32Array): Float32Array {
  const across = Math.ceil(cols / blocks.cols);
  const largest = largestOfBlocks(blocks, rows, cols, values);
  const scales = new Float32Array(largest.length);
  const follow = blocks.rows === 1 || across === 1; // the values of a block follow each other
  const scratch = new Float32Array(follow ? 0 : Math.min(blocks.rows, rows) * Math.min(blocks.cols, cols));
  for (let from = 0; from < largest.length; from += BLOCKS_AT_ONCE) {
    const part = largest.subarray(from, from + BLOCKS_AT_ONCE);
    const candidates = SCALE_SHARES.map((share) =>
      roundScales(
        blocks,
        part.map((magnitude) => (magnitude > 0 ? (magnitude / grid.largest) * share || MIN_VALUE : 1)),
      ),
    );
    for (let i = 0; i < part.length; i++) {
      const [row, first] = [Math.floor((from + i) / across) * blocks.rows, ((from + i) % across) * blocks.cols];
      const [height, width] = [Math.min(blocks.rows, rows - row), Math.min(blocks.cols, cols - first)];
      const start = row * cols + first;
      const own = follow ? values : gather(values, start, cols, height, width, scratch);
      scales[from + i] = bestScale(grid, candidates, i, own, follow ? start : 0, height * width);
    }
  }
  return scales;
}

/** The blocks whose scales are rounded together. */
const BLOCKS_AT_ONCE = 4096;

/** The smallest positive f32. */
const MIN_VALUE = 2 ** -149;

/** The largest magnitude of each block. */
function largestOfBlocks(blocks: BlockScales, rows: number, cols: number, values: Float32Array): Float32Array {
  const across = Math.ceil(cols / blocks.cols);
  const largest = new Float32Array(Math.ceil(rows / blocks.rows) * across);
  for (let row = 0, from = 0; row < rows; row++) {
    let block = Math.floor(row / blocks.rows) * across;
    for (let end = from, last = from + cols; from < last; block++) {
      end = Math.min(end + blocks.cols, last);
      let most = largest[block] as number;
      for (; from < end; from++) {
        const magnitude = Math.abs(values[from] as number);
        if (magnitude > most) most = magnitude;
      }
      largest[block] = most;
    }
  }
  return largest;
}

/** Copies a block so that its values follow each other. */
function gather(
  values: Float32Array,
  start: number,
  cols: number,
  height: number,
  width: number,
  target: Float32Array,
): Float32Array {
  for (let row = 0; row < height; row++)
    target.set(values.subarray(start + row * cols, start + row * cols + width), row * width);
  return target;
}

function bestScale(
  grid: CodeGrid,
  candidates: readonly Float32Array[],
  block: number,
  values: Float32Array,
  start: number,
  count: number,
): number {
  let best = (candidates[0] as Float32Array)[block] as number;
  if (!Number.isFinite(best)) return best;
  let least = Number.POSITIVE_INFINITY;
  let tried = 0;
  for (let i = 0; i < candidates.length && least > 0; i++) {
    const scale = (candidates[i] as Float32Array)[block] as number;
    if (scale === tried) continue;
    tried = scale;
    const error = grid.squaredError(values, start, count, scale, least);
    if (error < least) [best, least] = [scale, error];
  }
  return best;
}

/** Writes the codes of all rows. */
function writeCodes(
  { grid, blocks, bits }: Writer,
  rows: number,
  cols: number,
  values: Float32Array,
  scales: Float32Array,
  data: Uint8Array,
): void {
  const across = Math.ceil(cols / blocks.cols);
  const stride = data.length / rows;
  const codes = new Uint8Array(cols);
  for (let row = 0; row < rows; row++) {
    const block = Math.floor(row / blocks.rows) * across;
    const target = data.subarray(row * stride, (row + 1) * stride);
    const own = bits === 8 && stride === cols ? target : codes;
    for (let i = 0; i < across; i++) {
      const first = i * blocks.cols;
      const count = Math.min(blocks.cols, cols - first);
      grid.encode(values, row * cols + first, count, scales[block + i] as number, own, first);
    }
    if (own !== target) packCodes(codes, bits, target);
  }
}

/** Packs codes into little-endian bits. The bits after the last code are 0. */
function packCodes(codes: Uint8Array, bits: number, target: Uint8Array): void {
  let pending = 0;
  let held = 0;
  let to = 0;
  for (let i = 0; i < codes.length; i++) {
    pending |= (codes[i] as number) << held;
    held += bits;
    if (held >= 8) {
      target[to++] = pending & 0xff;
      pending >>>= 8;
      held -= 8;
    }
  }
  if (held > 0) target[to] = pending;
}
