/** A JSON file that carries its own SHA-256, so that a flipped bit in it shows. */
import { createHash } from 'node:crypto';

const DIGITS = 64;
/** The seal is the last entry; whatever follows it is covered too. */
const SEAL = /"sha256": "([0-9a-f]{64})"\s*\}\s*$/;
/** The seal and the little that follows it; the rest need not be searched. */
const TAIL_BYTES = 256;

/**
 * Adds a last entry `"sha256"`: the hash of the whole text with zeros in the place of its digits.
 * @param json text of an object that is not empty
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

/** Whether a file's bytes are as they were sealed; `none` where they have no seal at their end. */
export function checkSeal(bytes: Uint8Array): 'sound' | 'damaged' | 'none' {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const tail = buffer.subarray(-TAIL_BYTES).toString('latin1'); // a character a byte: places are those of the bytes
  const match = SEAL.exec(tail);
  if (!match) return 'none';
  const digits = buffer.length - tail.length + match.index + '"sha256": "'.length;
  const hash = createHash('sha256')
    .update(buffer.subarray(0, digits))
    .update('0'.repeat(DIGITS))
    .update(buffer.subarray(digits + DIGITS));
  return hash.digest('hex') === match[1] ? 'sound' : 'damaged';
}
