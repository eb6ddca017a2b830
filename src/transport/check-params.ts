import type { z } from 'zod';
import { ProtocolError } from '../errors.js';

/** What a peer sent, as the schema has it. Throws a `ProtocolError` that names the field. */
export function checkParams<T>(peer: string, what: string, schema: z.ZodType<T>, value: unknown): T {
  const { success, data, error } = schema.safeParse(value);
  if (success) return data;
  const [issue] = error.issues;
  throw new ProtocolError(peer, `${what} is wrong at "${issue?.path.join('.')}": ${issue?.message}`);
}
