export interface QuantisableTensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
}

/** Weights are quantised as codes of 8 bits or fewer, or packed in words; what is no matrix is a buffer (a mask, a position). */
const CODES = /^(?:F8_E4M3|F8_E5M2|F4|F6_\w+|[IU](?:8|16|32))$/;

/** The tensor looks like the data of a quantised matrix, in whatever format: integers or tiny floats where weights are expected. */
export const seemsQuantised = ({ dtype, shape }: QuantisableTensor): boolean => shape.length >= 2 && CODES.test(dtype);
