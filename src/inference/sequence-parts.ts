/** Places several sequences in one call: the rows of each, and the earlier tokens that each token sees. */
import { MASKED } from './attention.js';
import { type KeyValueCache, roomFor } from './key-value-cache.js';

/** Most attention scores of one chunk, over all heads. Longer parts are split into chunks. */
const SCORES = 4 * 2 ** 20;

/** Tokens to append to a sequence. */
export interface SequencePart {
  readonly sequence: KeyValueCache;
  readonly tokens: readonly number[];
}

interface Chunk {
  /** Position of the chunk's first token in its sequence. */
  readonly position: number;
  readonly tokens: number;
  /** Row of the chunk's first token in the call. */
  readonly row: number;
  /** (tokens, room). Each token sees itself and the tokens before it. */
  mask(room: number): Float32Array;
}

/** A part, with its place among the rows of the call. */
export interface PlacedPart {
  readonly sequence: KeyValueCache;
  chunks(heads: number): Iterable<Chunk>;
}

/** Gives each part its rows, and splits its tokens into chunks with at most `SCORES` scores. */
export function placeParts(parts: readonly SequencePart[]): PlacedPart[] {
  let row = 0;
  return parts.map(({ sequence, tokens: { length } }) => {
    const first = row;
    const before = sequence.length;
    row += length;
    // Only the last mask is kept. A single chunk has the same mask in every layer; the masks of many chunks would be too large.
    let last: { readonly key: string; readonly mask: Float32Array } | undefined;
    return {
      sequence,
      *chunks(heads) {
        const most = Math.max(1, Math.floor(SCORES / (heads * roomFor(before + length))));
        for (let done = 0; done < length; done += most) {
          const tokens = Math.min(most, length - done);
          const position = before + done;
          yield {
            position,
            tokens,
            row: first + done,
            mask(room) {
              const key = `${position} ${room}`;
              if (last?.key !== key) last = { key, mask: causalMask(position, tokens, room) };
              return last.mask;
            },
          };
        }
      },
    };
  });
}

function causalMask(position: number, tokens: number, room: number): Float32Array {
  const mask = new Float32Array(tokens * room);
  for (let t = 0; t < tokens; t++) mask.fill(MASKED, t * room + position + t + 1, (t + 1) * room);
  return mask;
}
