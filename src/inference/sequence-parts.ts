/** Several sequences in one call: where each one's rows are, and which earlier tokens each sees. */
import { MASKED } from './attention.js';
import { type KeyValueCache, roomFor } from './key-value-cache.js';

/** Numbers of one chunk's attention scores, all heads; more tokens go in several chunks. */
const SCORES = 4 * 2 ** 20;

/** Tokens that follow those a sequence has. */
export interface SequencePart {
  readonly sequence: KeyValueCache;
  readonly tokens: readonly number[];
}

interface Chunk {
  /** Of its first token in the sequence. */
  readonly position: number;
  readonly tokens: number;
  /** Of its first token among all parts. */
  readonly row: number;
  /** (tokens, room): each token sees itself and those before it. */
  mask(room: number): Float32Array;
}

/** A part among the rows of a call. */
export interface PlacedPart {
  readonly sequence: KeyValueCache;
  chunks(heads: number): Iterable<Chunk>;
}

/** Where each part's rows are, and its tokens in chunks whose scores are not too many. */
export function placeParts(parts: readonly SequencePart[]): PlacedPart[] {
  let row = 0;
  return parts.map(({ sequence, tokens: { length } }) => {
    const first = row;
    const before = sequence.length;
    row += length;
    // The last one: where there is one chunk it is the same in every layer, where there are many they would be too large to keep.
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
