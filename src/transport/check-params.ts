import type { z } from 'zod';
import { ProtocolError } from '../errors.js';

/** A value from a peer, checked against the schema. Throws a `ProtocolError` that names the wrong field. */
export function checkParams<T>(peer: string, what: string, schema: z.ZodType<T>, value: unknown): T {
  const { success, data, error } = schema.safeParse(value);
  if (success) return data;
  const [issue] = error.issues;
  throw new ProtocolError(peer, `${what} is wrong at "${issue?.path.join('.')}": ${issue?.message}`);
}
