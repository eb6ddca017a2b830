/** A matrix as a part of another, or of another's transpose: fused experts, GPTQ, AWQ. */
import { z } from 'zod';
import { type Decoder, size, type Window } from './decoder.js';

/** @param of the schema of the encodings that can be viewed */
export const viewSchema = <T extends z.ZodType>(of: T) =>
  z.strictObject({
    kind: z.literal('view'),
    of,
    rows: size,
    cols: size,
    first: z.int().nonnegative(),
    step: size,
    transposed: z.boolean(),
  });

/**
 * The rows `first`, `first + step`, … of a stored matrix (rows, cols), or of its transpose if `transposed`. Rows of the transpose
 * are columns of the stored matrix. The data and the scales are those of the whole stored matrix.
 */
export interface View<E> {
  readonly kind: 'view';
  readonly of: E;
  readonly rows: number;
  readonly cols: number;
  readonly first: number;
  readonly step: number;
  readonly transposed: boolean;
}

/** The elements of a stored matrix that are decoded at once to be transposed. In f32 they take 1 MiB. */
const TILE = 2 ** 18;

export function viewDecoder<E>(decoderOf: (encoding: E) => Decoder<E>): Decoder<View<E>> {
  return {
    describe: ({ of }) => decoderOf(of).describe(of),
    storedBytes: ({ of, rows, cols }) => decoderOf(of).storedBytes(of, rows, cols),
    rowSpan({ of, rows, cols, first, step, transposed }, _, { first: from, count }) {
      const decoder = decoderOf(of);
      const [end, most] = [first + from * step + reach(count, step), transposed ? cols : rows];
      if (count > 0 && end > most) throw new RangeError(`rows up to ${end} of a view of ${most}`);
      if (transposed) return { start: 0, end: decoder.storedBytes(of, rows, cols).data };
      return decoder.rowSpan(of, cols, { first: first + from * step, count: reach(count, step) });
    },
    decode(view, _, window, data, scales, target) {
      const decoder = decoderOf(view.of);
      if (view.transposed) decodeColumns(decoder, view, window, data, scales, target);
      else decodeRowsOf(decoder, view, window, data, scales, target);
    },
    fault: ({ of, rows, cols }, _, __, scales) => decoderOf(of).fault?.(of, rows, cols, scales),
  };
}

/** The number of positions from the first to the last of `count` items that are `step` apart. */
const reach = (count: number, step: number): number => (count === 0 ? 0 : (count - 1) * step + 1);

function decodeRowsOf<E>(
  decoder: Decoder<E>,
  { of, cols, first, step }: View<E>,
  { rows, columns }: Window,
  data: Uint8Array,
  scales: Uint8Array,
  target: Float32Array,
): void {
  if (step === 1) {
    const stored = { first: first + rows.first, count: rows.count };
    decoder.decode(of, cols, { rows: stored, columns }, data, scales, target);
    return;
  }
  const { start: base } = decoder.rowSpan(of, cols, { first: first + rows.first * step, count: 0 });
  for (let row = 0; row < rows.count; row++) {
    const stored = { first: first + (rows.first + row) * step, count: 1 };
    const { start, end } = decoder.rowSpan(of, cols, stored);
    const part = target.subarray(row * columns.count, (row + 1) * columns.count);
    decoder.decode(of, cols, { rows: stored, columns }, data.subarray(start - base, end - base), scales, part);
  }
}

function decodeColumns<E>(
  decoder: Decoder<E>,
  { of, cols, first, step }: View<E>,
  { rows, columns }: Window,
  data: Uint8Array,
  scales: Uint8Array,
  target: Float32Array,
): void {
  const width = reach(rows.count, step);
  const across = { first: first + rows.first * step, count: width };
  const height = Math.max(1, Math.min(columns.count, Math.floor(TILE / Math.max(1, width))));
  const tile = new Float32Array(height * width);
  for (let done = 0; done < columns.count; done += height) {
    const down = { first: columns.first + done, count: Math.min(height, columns.count - done) };
    const { start, end } = decoder.rowSpan(of, cols, down);
    const values = tile.subarray(0, down.count * width);
    decoder.decode(of, cols, { rows: down, columns: across }, data.subarray(start, end), scales, values);
    for (let row = 0; row < rows.count; row++) {
      const to = row * columns.count + done;
      for (let i = 0; i < down.count; i++) target[to + i] = values[i * width + row * step] as number;
    }
  }
}
