import { z } from 'zod';

/**
 * The schema of a list of untrusted elements, which may have millions. `z.array` would collect an issue for every bad element;
 * this stops at the first. The elements are returned unchanged.
 */
export const listOf = <T>(element: z.ZodType<T>) =>
  z.custom<T[]>(
    (value) => Array.isArray(value) && value.every((it) => element.safeParse(it).success),
    'not a list of what belongs there',
  );
