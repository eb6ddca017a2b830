/** Adds the SHA-256 of a JSON file to the file itself, so that a flipped bit shows. */
import { createHash } from 'node:crypto';

const DIGITS = 64;
/** The seal is the last entry. The hash also covers the text after it. */
const SEAL = /"sha256": "([0-9a-f]{64})"\s*\}\s*$/;
/** The end of a file, in which the seal is searched. */
const TAIL_BYTES = 256;

/**
 * Adds a last entry `"sha256"`: the hash of the whole text, with zeros instead of the hash's digits.
 * @param json the text of an object that is not empty
 */
export function seal(json: string): string {
  const end = json.lastIndexOf('}');
  const body = json.slice(0, end).trimEnd();
  const prefix = `${body},\n  "sha256": "`;
  const suffix = '"\n}\n';
  const digits = createHash('sha256')
    .update(`${prefix}${'0'.repeat(DIGITS)}${suffix}`)
    .digest('hex');
  return `${prefix}${digits}${suffix}`;
}

/** Checks the seal of a file. Returns `none` if there is no seal at its end. */
export function checkSeal(bytes: Uint8Array): 'sound' | 'damaged' | 'none' {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const tail = buffer.subarray(-TAIL_BYTES).toString('latin1'); // latin1 has one character for each byte, so positions are those of the bytes
  const match = SEAL.exec(tail);
  if (!match) return 'none';
  const digits = buffer.length - tail.length + match.index + '"sha256": "'.length;
  const hash = createHash('sha256')
    .update(buffer.subarray(0, digits))
    .update('0'.repeat(DIGITS))
    .update(buffer.subarray(digits + DIGITS));
  return hash.digest('hex') === match[1] ? 'sound' : 'damaged';
}
