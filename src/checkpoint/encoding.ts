/** Decodes stored matrices: plain floats, and quantised ones, whose codes of 1 to 8 bits share scales. */
import { z } from 'zod';
import type { FloatDtype } from './dtype.js';
import { codesDecoder, codesSchema } from './encodings/codes.js';
import { checkLength, checkWhole, type Decoder, type Range, type Span, type StoredBytes } from './encodings/decoder.js';
import { floatDecoder, floatSchema } from './encodings/float.js';
import { fp4Decoder, fp4Schema } from './encodings/fp4.js';
import { awqDecoder, awqSchema, gptqDecoder, gptqSchema } from './encodings/grouped-rows.js';
import { packedDecoder, packedSchema } from './encodings/packed.js';
import { type View, viewDecoder, viewSchema } from './encodings/view.js';

export type { ScaleDtype } from './encodings/block-scales.js';

const storedSchema = z.discriminatedUnion('kind', [
  floatSchema,
  codesSchema,
  fp4Schema,
  packedSchema,
  gptqSchema,
  awqSchema,
]);

/** How the bytes of a stored matrix (rows × cols, row-major) become numbers. */
export type StoredEncoding = Readonly<z.infer<typeof storedSchema>>;

/** The encoding of a stored matrix, of a part of one, or of a part of the transpose of one. */
export type Encoding = StoredEncoding | View<StoredEncoding>;

/** Checks an encoding that comes from another machine. */
export const encodingSchema = z.union([storedSchema, viewSchema(storedSchema)]);

type Decoders = { readonly [K in StoredEncoding['kind']]: Decoder<Extract<StoredEncoding, { kind: K }>> };

const DECODERS: Decoders = {
  float: floatDecoder,
  codes: codesDecoder,
  fp4: fp4Decoder,
  packed: packedDecoder,
  gptq: gptqDecoder,
  awq: awqDecoder,
};

const storedDecoder = ({ kind }: StoredEncoding): Decoder<StoredEncoding> =>
  DECODERS[kind] as unknown as Decoder<StoredEncoding>;

const VIEW = viewDecoder(storedDecoder);

const decoderOf = (encoding: Encoding): Decoder<Encoding> =>
  (encoding.kind === 'view' ? VIEW : storedDecoder(encoding)) as unknown as Decoder<Encoding>;

/** The bytes of a stored matrix: of its data, and of the scales that follow it. */
export const storedBytes = (encoding: Encoding, rows: number, cols: number): StoredBytes =>
  decoderOf(encoding).storedBytes(encoding, rows, cols);

/** The encoding in words: "BF16", "F8_E4M3 in 128 × 128 blocks", "INT4 in groups of 32". */
export const describeEncoding = (encoding: Encoding): string => decoderOf(encoding).describe(encoding);

/** The dtype of a matrix that is stored as plain floats, in any orientation; undefined for a quantised one. */
export function floatDtypeOf(encoding: Encoding): FloatDtype | undefined {
  const stored = encoding.kind === 'view' ? encoding.of : encoding;
  return stored.kind === 'float' ? stored.dtype : undefined;
}

/** A fault in the values of a matrix's scales, which shows only when they are read; undefined if there is none. */
export const scaleFault = (encoding: Encoding, rows: number, cols: number, scales: Uint8Array): string | undefined =>
  decoderOf(encoding).fault?.(encoding, rows, cols, scales);

/** The part of the data that `decodeRows` needs for some rows. It is all data if rows do not follow each other in the file. */
export const rowSpan = (encoding: Encoding, cols: number, rows: Range): Span =>
  decoderOf(encoding).rowSpan(encoding, cols, rows);

/**
 * Decodes `rows.count` rows of a matrix, from row `rows.first` on. They may begin and end inside a block.
 *
 * @param data the bytes of `rowSpan`, and no others; at any alignment
 * @param scales all bytes that follow the data, empty for floats; at any alignment
 * @param target (rows.count, cols) f32: value · scale, rounded once to f32, as in PyTorch's `w.float() * scale.float()`.
 *   (compressed-tensors multiplies in the scales' dtype. If that is bf16, it rounds int4 weights to bf16.)
 * @throws RangeError if a length does not fit. Headers were checked before, so this is a mistake of the caller.
 */
export function decodeRows(
  encoding: Encoding,
  cols: number,
  rows: Range,
  data: Uint8Array,
  scales: Uint8Array,
  target: Float32Array,
): void {
  checkWhole('cols', cols, 1);
  checkWhole('rows.first', rows.first, 0);
  checkWhole('rows.count', rows.count, 0);
  const { start, end } = rowSpan(encoding, cols, rows);
  checkLength('bytes of data', data.length, end - start);
  checkLength('numbers in the target', target.length, rows.count * cols);
  decoderOf(encoding).decode(encoding, cols, { rows, columns: { first: 0, count: cols } }, data, scales, target);
}
