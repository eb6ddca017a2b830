/** Keys and values of a sequence's tokens, so that a further token costs one token. */
import type { CachedSizes, KeptTokens } from './attention.js';

/** Room grows by doubling: programs are compiled for it, and so for few lengths. */
const LEAST_ROOM = 64;

/** The room a sequence of this length has. */
export const roomFor = (tokens: number): number => {
  let room = LEAST_ROOM;
  while (room < tokens) room *= 2;
  return room;
};

/** Bytes of a sequence of this length, while it grows to it: the old arrays of one layer are there beside the new. */
export const keptBytes = (layers: readonly CachedSizes[], tokens: number): number =>
  layers.reduce((sum, { heads, keySize, valueSize }) => sum + 4 * heads * (keySize + valueSize) * roomFor(tokens), 0);

interface Layer extends CachedSizes {
  key: Float32Array;
  value: Float32Array;
  room: number;
  length: number;
}

export class KeyValueCache {
  private readonly layers: Layer[];

  constructor(sizes: readonly CachedSizes[]) {
    const none = new Float32Array(0);
    this.layers = sizes.map((it) => ({ ...it, key: none, value: none, room: 0, length: 0 }));
  }

  /** Tokens that every layer has. */
  get length(): number {
    return this.layers.at(-1)?.length ?? 0;
  }

  /** Adds tokens to a layer. key: (heads, t, keySize), value: (heads, t, valueSize) → all of them. */
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

/** (heads, from) → (heads, to), zeros at the end of each head. */
function widen(source: Float32Array, heads: number, from: number, to: number): Float32Array {
  const target = new Float32Array(heads * to);
  for (let head = 0; head < heads; head++) target.set(source.subarray(head * from, (head + 1) * from), head * to);
  return target;
}

/** Copies each head's rows into the target's, `offset` numbers into them. */
function place(source: Float32Array, target: Float32Array, heads: number, offset: number): void {
  const [from, to] = [source.length / heads, target.length / heads];
  for (let head = 0; head < heads; head++)
    target.set(source.subarray(head * from, (head + 1) * from), head * to + offset);
}
