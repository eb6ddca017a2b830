import { z } from 'zod';

/** The schema of a size of a problem. The cap is far above any model's sizes, and keeps the byte counts computed from them exact. */
export const size = z
  .int()
  .positive()
  .max(2 ** 24);
