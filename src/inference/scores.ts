/** Measures how well a model predicts a text, and how far its predictions are from another model's. All sums are f64. */
import { mostLikely } from './sample.js';

/** A prediction of the next token. */
export interface Prediction {
  /** (v) */
  readonly logProbabilities: Float64Array;
  readonly mostLikely: number;
}

/** A prediction from logits (v). */
export function predict(logits: Float32Array): Prediction {
  const best = mostLikely(logits);
  const top = logits[best] as number;
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - top);
  const normaliser = top + Math.log(sum);
  return { logProbabilities: Float64Array.from(logits, (logit) => logit - normaliser), mostLikely: best };
}

/** KL divergence of `other` from `truth`, Σ p·(log p − log q), nats. */
export function divergence(truth: Prediction, other: Prediction): number {
  let sum = 0;
  for (const [token, logP] of truth.logProbabilities.entries()) {
    const p = Math.exp(logP);
    if (p > 0) sum += p * (logP - (other.logProbabilities[token] as number));
  }
  return sum;
}

/** `error` is Σ (a − b)², `norm` is Σ b². */
export function squaredDifference(a: Float32Array, b: Float32Array): { error: number; norm: number } {
  let error = 0;
  let norm = 0;
  for (const [i, value] of b.entries()) {
    error += ((a[i] as number) - value) ** 2;
    norm += value ** 2;
  }
  return { error, norm };
}
