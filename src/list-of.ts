import { z } from 'zod';

/**
 * A list of untrusted elements, which may be millions. `z.array` would collect an issue for every bad one; this stops at the
 * first. The elements are given back as they came.
 */
export const listOf = <T>(element: z.ZodType<T>) =>
  z.custom<T[]>(
    (value) => Array.isArray(value) && value.every((it) => element.safeParse(it).success),
    'not a list of what belongs there',
  );
