import { z } from 'zod';
import { decodeFloats } from '../codec.js';
import { floatBytes } from '../dtype.js';
import { checkLength, type Decoder, spanOfRows } from './decoder.js';

export const floatSchema = z.strictObject({ kind: z.literal('float'), dtype: z.enum(['F32', 'F16', 'BF16']) });

/** The numbers themselves, without scales. */
export type FloatEncoding = Readonly<z.infer<typeof floatSchema>>;

export const floatDecoder: Decoder<FloatEncoding> = {
  describe: ({ dtype }) => dtype,
  storedBytes: ({ dtype }, rows, cols) => ({ data: rows * cols * floatBytes(dtype), scales: 0 }),
  rowSpan: ({ dtype }, cols, rows) => spanOfRows(cols * floatBytes(dtype), rows),
  decode({ dtype }, cols, { rows, columns }, data, scales, target) {
    checkLength('bytes of scales', scales.length, 0);
    if (columns.count === cols) {
      decodeFloats(dtype, data, target);
      return;
    }
    const bytes = floatBytes(dtype);
    const { first, count } = columns;
    for (let row = 0; row < rows.count; row++) {
      const start = (row * cols + first) * bytes;
      const part = data.subarray(start, start + count * bytes);
      decodeFloats(dtype, part, target.subarray(row * count, (row + 1) * count));
    }
  },
};
