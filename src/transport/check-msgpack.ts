import { InvalidFrameError } from '../errors.js';
import { MAX_HEADER_DEPTH } from './limits.js';

/**
 * Walks MessagePack without building anything. A decoder allocates an array as long as it is said to be, before it finds
 * that the bytes are not there; and extension types call code we do not need. Both are refused here.
 * Throws an `InvalidFrameError` unless `bytes` are one value of nil, booleans, numbers, strings, binaries, arrays and maps.
 */
export function checkMsgpack(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let position = 0;

  const skip = (length: number): void => {
    position += length;
    if (position > bytes.byteLength) throw new InvalidFrameError('its header says it is longer than it is');
  };
  /** A big-endian length of 1, 2 or 4 bytes. */
  const readLength = (width: number): number => {
    const at = position;
    skip(width);
    return width === 1 ? view.getUint8(at) : width === 2 ? view.getUint16(at) : view.getUint32(at);
  };
  const walkAll = (values: number, depth: number): void => {
    if (values > bytes.byteLength - position) throw new InvalidFrameError('its header says it is longer than it is');
    for (let i = 0; i < values; i++) walk(depth + 1);
  };
  const walk = (depth: number): void => {
    if (depth > MAX_HEADER_DEPTH) throw new InvalidFrameError(`its header is nested deeper than ${MAX_HEADER_DEPTH}`);
    const type = readLength(1);
    if (type <= 0x7f || type >= 0xe0) return; // small integers
    if (type <= 0x8f) return walkAll(2 * (type & 0x0f), depth);
    if (type <= 0x9f) return walkAll(type & 0x0f, depth);
    if (type <= 0xbf) return skip(type & 0x1f);
    switch (type) {
      case 0xc0: // nil
      case 0xc2: // false
      case 0xc3: // true
        return;
      case 0xc4: // binary
      case 0xc5:
      case 0xc6:
        return skip(readLength(1 << (type - 0xc4)));
      case 0xca: // f32
        return skip(4);
      case 0xcb: // f64
        return skip(8);
      case 0xcc: // u8 … u64
      case 0xcd:
      case 0xce:
      case 0xcf:
        return skip(1 << (type - 0xcc));
      case 0xd0: // i8 … i64
      case 0xd1:
      case 0xd2:
      case 0xd3:
        return skip(1 << (type - 0xd0));
      case 0xd9: // string
      case 0xda:
      case 0xdb:
        return skip(readLength(1 << (type - 0xd9)));
      case 0xdc: // array
      case 0xdd:
        return walkAll(readLength(type === 0xdc ? 2 : 4), depth);
      case 0xde: // map
      case 0xdf:
        return walkAll(2 * readLength(type === 0xde ? 2 : 4), depth);
      default:
        throw new InvalidFrameError(
          `its header has a value of the unsupported MessagePack type 0x${type.toString(16)}`,
        );
    }
  };

  walk(0);
  if (position !== bytes.byteLength) throw new InvalidFrameError('its header is followed by other bytes');
}
