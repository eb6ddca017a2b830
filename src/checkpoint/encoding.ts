/** Decodes stored matrices: plain floats, and 8- and 4-bit codes with one scale for each block. */
import { decodeFloats } from './codec.js';
import { type FloatDtype, floatBytes } from './dtype.js';
import { float8Values } from './float8.js';
import { multiplyCodes, multiplyNibbles } from './multiply-codes.js';

/** The encoding of a stored matrix (rows × cols, row-major). */
export type Encoding = FloatEncoding | Fp8Encoding | Int4Encoding;

/** Plain floats without scales. */
export interface FloatEncoding {
  readonly kind: 'float';
  readonly dtype: FloatDtype;
}

/**
 * W = code · scale of its block. Scales: (⌈rows / blockRows⌉, ⌈cols / blockCols⌉), row-major. DeepSeek-V3 has blocks of
 * 128 × 128. One scale for the whole tensor is one block of rows × cols; one for each output channel are blocks of 1 × cols.
 */
export interface Fp8Encoding {
  readonly kind: 'fp8';
  readonly dtype: 'F8_E4M3' | 'F8_E5M2';
  readonly scaleDtype: ScaleDtype;
  readonly blockRows: number;
  readonly blockCols: number;
}

/**
 * "pack-quantized" of compressed-tensors, 4 bits, symmetric. Data: i32 words (rows, ⌈cols / 8⌉). Each 4-bit field holds
 * value + 8, the lowest bits first. Scales: (rows, ⌈cols / groupSize⌉).
 */
export interface Int4Encoding {
  readonly kind: 'int4';
  readonly scaleDtype: ScaleDtype;
  readonly groupSize: number;
}

/** Dtype of scales. */
export type ScaleDtype = FloatDtype | 'F8_E8M0';

/** Bytes of a matrix's data and of its scales. Throws a `RangeError` for blocks without size. */
export function storedBytes(encoding: Encoding, rows: number, cols: number): { data: number; scales: number } {
  const data = rows * rowBytes(encoding, cols);
  const blocks = scaleBlocks(encoding);
  return { data, scales: blocks ? Math.ceil(rows / blocks.rows) * Math.ceil(cols / blocks.cols) * blocks.bytes : 0 };
}

/** A description for people: "BF16", "F8_E4M3 in 128 × 128 blocks", "INT4 in groups of 32". */
export function describeEncoding(encoding: Encoding): string {
  if (encoding.kind === 'float') return encoding.dtype;
  if (encoding.kind === 'int4') return `INT4 in groups of ${encoding.groupSize}`;
  return `${encoding.dtype} in ${encoding.blockRows} × ${encoding.blockCols} blocks`;
}

/**
 * Decodes `rows.count` rows of a matrix, from row `rows.first` on. They may begin and end inside a block.
 *
 * @param data the bytes of exactly these rows, at any alignment
 * @param scales the scales of the whole matrix, at any alignment; empty for floats
 * @param target (rows.count, cols) f32: value · scale, rounded once to f32, as in PyTorch's `w.float() * scale.float()`.
 *   (compressed-tensors multiplies in the scales' dtype, and so rounds int4 weights to bf16 where those are bf16.)
 * @throws RangeError if a length does not fit. Headers were checked before, so this is a mistake of the caller.
 */
export function decodeRows(
  encoding: Encoding,
  cols: number,
  rows: { readonly first: number; readonly count: number },
  data: Uint8Array,
  scales: Uint8Array,
  target: Float32Array,
): void {
  checkWhole('cols', cols, 1);
  checkWhole('rows.first', rows.first, 0);
  checkWhole('rows.count', rows.count, 0);
  const stride = rowBytes(encoding, cols);
  checkLength('bytes of data', data.length, rows.count * stride);
  checkLength('numbers in the target', target.length, rows.count * cols);
  if (encoding.kind === 'float') {
    checkLength('bytes of scales', scales.length, 0);
    decodeFloats(encoding.dtype, data, target);
    return;
  }

  const blocks = scaleBlocks(encoding);
  const blocksAcross = Math.ceil(cols / blocks.cols);
  const firstBlock = Math.floor(rows.first / blocks.rows);
  const factors = scalesOfBlockRows(encoding.scaleDtype, scales, blocksAcross * blocks.bytes, {
    first: firstBlock,
    end: Math.ceil((rows.first + rows.count) / blocks.rows),
  });
  const values = encoding.kind === 'fp8' ? float8Values(encoding.dtype) : undefined;
  for (let row = 0; row < rows.count; row++) {
    const block = (Math.floor((rows.first + row) / blocks.rows) - firstBlock) * blocksAcross;
    for (let across = 0; across < blocksAcross; across++) {
      const start = across * blocks.cols;
      const end = Math.min(start + blocks.cols, cols);
      const scale = factors[block + across] as number;
      // The loop goes row by row, not block by block, so that memory is read and written in order.
      if (values) multiplyCodes(values, scale, data, row * stride + start, target, row * cols + start, end - start);
      else multiplyNibbles(scale, data, row * stride, start, end, target, row * cols);
    }
  }
}

/** Bytes from one row to the next. */
function rowBytes(encoding: Encoding, cols: number): number {
  if (encoding.kind === 'float') return cols * floatBytes(encoding.dtype);
  return encoding.kind === 'fp8' ? cols : Math.ceil(cols / 8) * 4;
}

interface ScaleBlocks {
  readonly rows: number;
  readonly cols: number;
  /** Bytes of one scale. */
  readonly bytes: number;
}

function scaleBlocks(encoding: Fp8Encoding | Int4Encoding): ScaleBlocks;
function scaleBlocks(encoding: Encoding): ScaleBlocks | undefined;
function scaleBlocks(encoding: Encoding): ScaleBlocks | undefined {
  if (encoding.kind === 'float') return undefined;
  const [rows, cols] = encoding.kind === 'fp8' ? [encoding.blockRows, encoding.blockCols] : [1, encoding.groupSize];
  checkWhole('rows of a block', rows, 1);
  checkWhole('cols of a block', cols, 1);
  return { rows, cols, bytes: scaleBytes(encoding.scaleDtype) };
}

/** Decodes the scales of some rows of blocks. With a scale for each channel, decoding all would take longer than the rows. */
function scalesOfBlockRows(
  dtype: ScaleDtype,
  scales: Uint8Array,
  bytesAcross: number,
  blockRows: { first: number; end: number },
): Float32Array {
  if (scales.length % bytesAcross !== 0 || scales.length < blockRows.end * bytesAcross) {
    throw new RangeError(
      `${scales.length} bytes of scales do not make ${blockRows.end} or more rows of blocks of ${bytesAcross} bytes`,
    );
  }
  const bytes = scales.subarray(blockRows.first * bytesAcross, blockRows.end * bytesAcross);
  const decoded = new Float32Array(bytes.length / scaleBytes(dtype));
  if (dtype === 'F8_E8M0') multiplyCodes(float8Values(dtype), 1, bytes, 0, decoded, 0, bytes.length);
  else decodeFloats(dtype, bytes, decoded);
  return decoded;
}

const scaleBytes = (dtype: ScaleDtype): number => (dtype === 'F8_E8M0' ? 1 : floatBytes(dtype));

function checkWhole(what: string, value: number, least: number): void {
  if (!Number.isSafeInteger(value) || value < least) {
    throw new RangeError(`${what} is ${value}, which is not a whole number of at least ${least}`);
  }
}

function checkLength(what: string, length: number, expected: number): void {
  if (length !== expected) throw new RangeError(`${length} ${what}, where the rows have ${expected}`);
}
