import { createHash, timingSafeEqual } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { TokenError } from '../errors.js';

/** Environment variable with the token, used if no file is given. (An argument would be visible in every process list.) */
export const TOKEN_VARIABLE = 'MOBE_TOKEN';

/** A shorter token could be guessed at the rate at which a server answers. */
const MIN_TOKEN_LENGTH = 16;
/** The token is part of an HTTP header, and Node accepts 16 KiB of headers. */
const MAX_TOKEN_LENGTH = 1024;

/** The token from a file, else from the environment; undefined if there is neither. Throws a `TokenError`. */
export async function readToken(file: string | undefined, env = process.env): Promise<string | undefined> {
  if (file === undefined) {
    const value = env[TOKEN_VARIABLE];
    return value === undefined ? undefined : checkToken(value, `the environment variable ${TOKEN_VARIABLE}`);
  }
  try {
    return checkToken(await readFile(file, 'utf8'), file);
  } catch (error) {
    throw error instanceof TokenError ? error : new TokenError(file, (error as Error).message);
  }
}

function checkToken(text: string, source: string): string {
  const token = text.trim();
  if (token.length < MIN_TOKEN_LENGTH) throw new TokenError(source, `it has fewer than ${MIN_TOKEN_LENGTH} characters`);
  if (token.length > MAX_TOKEN_LENGTH) throw new TokenError(source, `it has more than ${MAX_TOKEN_LENGTH} characters`);
  // RFC 6750, section 2.1: characters that may stand after "Bearer".
  if (!/^[\w.~+/-]+=*$/.test(token))
    throw new TokenError(source, 'it has characters other than A-Z a-z 0-9 - . _ ~ + /');
  return token;
}

/** The value of the HTTP header Authorization. */
export const authorization = (token: string): string => `Bearer ${token}`;

/** Whether a header has the token. Compares digests in constant time, so that an attacker learns neither content nor length. */
export function isAuthorised(header: string | undefined, token: string): boolean {
  const digest = (text: string): Buffer => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(header ?? ''), digest(authorization(token)));
}
