/** The common part of all kinds of attention: scores against the cached keys, and the interface of a layer. */
import type { EngineTensor } from '../engine/engine.js';
import { add, matmul, mul, reshape, softmax, type Value } from '../engine/ops.js';
import type { Rotary, Rotation } from './rotary.js';
import type { Runner } from './runner.js';
import type { Weight } from './weight.js';

/** Score of a masked token. Its exponential is 0 compared with any other, and it is finite, so no result becomes NaN. */
export const MASKED = -1e30;

/** Numbers cached for each token: `heads` keys of `keySize` and values of `valueSize`. */
export interface CachedSizes {
  readonly heads: number;
  readonly keySize: number;
  /** 0 if values are computed from the keys. */
  readonly valueSize: number;
}

/** Keys and values of all tokens so far, with room for more: (heads, room, size). */
export interface KeptTokens {
  readonly key: Float32Array;
  readonly value: Float32Array;
  readonly room: number;
}

/** Tensors of a layer's weights, by name. */
export type Tensors = Readonly<Record<string, EngineTensor>>;

/** One layer's attention. Letters: t tokens, d hidden size. */
export interface Attention {
  readonly weights: Readonly<Record<string, Weight>>;
  readonly cached: CachedSizes;
  readonly rotary: Rotary;
  /** Number of query heads: one score each for a token and a cached token. */
  readonly heads: number;
  /** hidden (t, d) → query, key and value of those tokens, (heads, t, size) each. */
  project(
    runner: Runner,
    weights: Tensors,
    hidden: Float32Array,
    rotation: Rotation,
  ): Promise<Record<'query' | 'key' | 'value', Float32Array>>;
  /** Returns hidden (t, d) plus the attention's output. mask: (t, room), 0 or `MASKED`. */
  attend(
    runner: Runner,
    weights: Tensors,
    hidden: Float32Array,
    query: Float32Array,
    kept: KeptTokens,
    mask: Float32Array,
  ): Promise<Float32Array>;
}

/**
 * softmax(query · keyᵀ · scale + mask) · value. Consecutive query heads share a key head.
 * query: (heads, t, k), key: (keyHeads, s, k), value: (keyHeads, s, v), mask: (t, s) → (heads, t, v)
 */
export function attend(query: Value, key: Value, value: Value, mask: Value, scale: number): Value {
  const [heads, t, k] = query.shape as [number, number, number];
  const [keyHeads, s] = key.shape as [number, number];
  const shared = heads / keyHeads;
  const scores = matmul(reshape(query, [keyHeads, shared * t, k]), key, { transposeB: true });
  const weights = softmax(add(mul(reshape(scores, [heads, t, s]), scale), mask));
  return reshape(matmul(reshape(weights, [keyHeads, shared * t, s]), value), [heads, t, value.shape[2] as number]);
}

/** x · Wᵀ (+ bias). W is (out, in), as linear layers store it. */
export function linear(x: Value, weight: Value, bias?: Value): Value {
  const product = matmul(x, weight, { transposeB: true });
  return bias ? add(product, bias) : product;
}
