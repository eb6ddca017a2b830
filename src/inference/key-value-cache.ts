/** Keys and values of a sequence's tokens. With them, the next token costs as much as one token. */
import type { CachedSizes, KeptTokens } from './attention.js';

/** The room doubles when it is full. Programs are compiled for each room, so there must be few of them. */
const LEAST_ROOM = 64;

/** Room, in tokens, of a sequence of this length. */
export const roomFor = (tokens: number): number => {
  let room = LEAST_ROOM;
  while (room < tokens) room *= 2;
  return room;
};

/** Bytes that all layers keep for a sequence of this length. */
export const keptBytes = (layers: readonly CachedSizes[], tokens: number): number =>
  layers.reduce((sum, { heads, keySize, valueSize }) => sum + 4 * heads * (keySize + valueSize) * roomFor(tokens), 0);

interface Layer extends CachedSizes {
  key: Float32Array;
  value: Float32Array;
  room: number;
  length: number;
}

/** The cache of one sequence, with arrays for each layer. */
export class KeyValueCache {
  private readonly layers: Layer[];

  constructor(sizes: readonly CachedSizes[]) {
    const none = new Float32Array(0);
    this.layers = sizes.map((it) => ({ ...it, key: none, value: none, room: 0, length: 0 }));
  }

  /** Number of tokens that every layer has. */
  get length(): number {
    return this.layers.at(-1)?.length ?? 0;
  }

  /** Adds t tokens to layer `number` and returns all its tokens. key: (heads, t, keySize), value: (heads, t, valueSize). */
  append(number: number, key: Float32Array, value: Float32Array): KeptTokens {
    const layer = this.layers[number] as Layer;
    const tokens = key.length / (layer.heads * layer.keySize);
    const room = roomFor(layer.length + tokens);
    if (room > layer.room) {
      layer.key = widen(layer.key, layer.heads, layer.room * layer.keySize, room * layer.keySize);
      layer.value = widen(layer.value, layer.heads, layer.room * layer.valueSize, room * layer.valueSize);
      layer.room = room;
    }
    place(key, layer.key, layer.heads, layer.length * layer.keySize);
    place(value, layer.value, layer.heads, layer.length * layer.valueSize);
    layer.length += tokens;
    return { key: layer.key, value: layer.value, room };
  }
}

/** Widens (heads, from) to (heads, to). The new numbers of each head are 0. */
function widen(source: Float32Array, heads: number, from: number, to: number): Float32Array {
  const target = new Float32Array(heads * to);
  for (let head = 0; head < heads; head++) target.set(source.subarray(head * from, (head + 1) * from), head * to);
  return target;
}

/** Copies each head's numbers into the same head of the target, `offset` numbers after its start. */
function place(source: Float32Array, target: Float32Array, heads: number, offset: number): void {
  const [from, to] = [source.length / heads, target.length / heads];
  for (let head = 0; head < heads; head++)
    target.set(source.subarray(head * from, (head + 1) * from), head * to + offset);
}
