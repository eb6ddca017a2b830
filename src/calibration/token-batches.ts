/** Reads the tokens of an expert in batches, so that the memory that they take is bounded. */
import { type TokenBatch, tokensAtOnce } from './expert-statistics.js';
import type { ExpertTokens } from './expert-tokens.js';
import type { LayerRecord } from './record.js';

/** An expert that no token reached is measured with at most this many of the layer's tokens, in units of their width. */
const SAMPLE = 5;

/** Tokens of the whole layer, evenly spaced, with equal weights. */
export function sampleOf({ tokens: count, width, scale }: LayerRecord): ExpertTokens {
  const size = Math.min(count, SAMPLE * width);
  const tokens = Int32Array.from({ length: size }, (_, i) => Math.floor((i * count) / size));
  const importance = Float32Array.from(tokens, (token) => scale[token] as number);
  return { tokens, importance, weights: new Float32Array(size).fill(1) };
}

/** Yields all tokens, in order. */
export async function* tokenBatches(
  { width, readInputs }: Pick<LayerRecord, 'width' | 'readInputs'>,
  { tokens, importance }: Pick<ExpertTokens, 'tokens' | 'importance'>,
): AsyncGenerator<TokenBatch & { readonly inputs: Float32Array<ArrayBuffer> }> {
  const most = tokensAtOnce(width);
  for (let at = 0; at < tokens.length; at += most) {
    const some = tokens.subarray(at, at + most);
    const inputs = new Float32Array(some.length * width);
    await readInputs(some, inputs);
    yield { inputs, importance: importance.slice(at, at + most) };
  }
}
