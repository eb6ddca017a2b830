export interface QuantisableTensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
}

/** The dtypes of quantised weights: codes of 8 bits or fewer, or words of packed codes. */
const CODES = /^(?:F8_E4M3|F8_E5M2|F4|F6_\w+|[IU](?:8|16|32))$/;

/** Whether a tensor looks like a quantised matrix in any format. Vectors do not count: they are buffers, for example masks. */
export const seemsQuantised = ({ dtype, shape }: QuantisableTensor): boolean => shape.length >= 2 && CODES.test(dtype);
