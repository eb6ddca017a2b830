import { InvalidFrameError } from '../errors.js';
import { MAX_HEADER_DEPTH } from './limits.js';

/**
 * Checks MessagePack without building values. A decoder allocates an array of the announced length before it finds that the
 * bytes are missing, and extension types run code that is not needed. This check refuses both.
 * Throws an `InvalidFrameError` unless `bytes` are one value made of nil, booleans, numbers, strings, binaries, arrays and maps.
 */
export function checkMsgpack(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let position = 0;

  /** Passes over the bytes of a value that contains no other values. */
  const skip = (length: number): 0 => {
    position += length;
    if (position > bytes.byteLength) throw new InvalidFrameError('its header says it is longer than it is');
    return 0;
  };
  /** A big-endian number of 1, 2 or 4 bytes. */
  const read = (width: number): number => {
    const at = position;
    skip(width);
    return width === 1 ? view.getUint8(at) : width === 2 ? view.getUint16(at) : view.getUint32(at);
  };
  /** Passes over one value and returns the number of values in it. Types: the MessagePack specification, "Formats". */
  const pass = (): number => {
    const type = read(1);
    if (type <= 0x7f || type >= 0xe0) return 0; // small integers
    if (type <= 0x8f) return 2 * (type & 0x0f); // small map
    if (type <= 0x9f) return type & 0x0f; // small array
    if (type <= 0xbf) return skip(type & 0x1f); // small string
    if (type === 0xc0 || type === 0xc2 || type === 0xc3) return 0; // nil, false, true
    if (type >= 0xc4 && type <= 0xc6) return skip(read(1 << (type - 0xc4))); // binary
    if (type >= 0xca && type <= 0xcb) return skip(4 << (type - 0xca)); // f32, f64
    if (type >= 0xcc && type <= 0xcf) return skip(1 << (type - 0xcc)); // u8 … u64
    if (type >= 0xd0 && type <= 0xd3) return skip(1 << (type - 0xd0)); // i8 … i64
    if (type >= 0xd9 && type <= 0xdb) return skip(read(1 << (type - 0xd9))); // string
    if (type >= 0xdc && type <= 0xdd) return read(2 << (type - 0xdc)); // array
    if (type >= 0xde) return 2 * read(2 << (type - 0xde)); // map
    throw new InvalidFrameError(`its header has a value of the unsupported MessagePack type 0x${type.toString(16)}`);
  };

  /** Number of values that must still come, for the whole and for each open array or map. */
  const open = [1];
  for (let depth = 0; depth >= 0; depth = open.length - 1) {
    const left = open[depth] as number;
    if (left === 0) {
      open.pop();
      continue;
    }
    open[depth] = left - 1;
    const within = pass();
    if (within > 0) open.push(within);
    if (open.length > MAX_HEADER_DEPTH)
      throw new InvalidFrameError(`its header is nested deeper than ${MAX_HEADER_DEPTH}`);
    if (within > bytes.byteLength - position) throw new InvalidFrameError('its header says it is longer than it is');
  }
  if (position !== bytes.byteLength) throw new InvalidFrameError('its header is followed by other bytes');
}
