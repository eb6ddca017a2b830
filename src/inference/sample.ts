/** Chooses the next token. */
import type { Random } from '../linalg/random.js';
import { softmax } from './router.js';

/** How tokens are chosen. */
export interface Sampling {
  /** 0 means always the most likely token. */
  readonly temperature: number;
  /** Only the most likely tokens that together have this probability can be chosen; 1 means all. */
  readonly topP: number;
}

/**
 * Chooses a token at random, by its probability.
 * @param logits (v)
 */
export function sample(logits: Float32Array, { temperature, topP }: Sampling, random: Random): number {
  if (temperature === 0) return mostLikely(logits);
  const probabilities = softmax(logits.map((it) => it / temperature));
  const order = Array.from(probabilities.keys()).sort(
    (a, b) => (probabilities[b] as number) - (probabilities[a] as number) || a - b,
  );
  let mass = 0;
  const eligible = order.findIndex((token) => {
    mass += probabilities[token] as number;
    return mass >= topP;
  });
  const nucleus = eligible < 0 ? order : order.slice(0, eligible + 1);
  let rest = random.uniform() * mass;
  for (const token of nucleus) {
    rest -= probabilities[token] as number;
    if (rest < 0) return token;
  }
  return nucleus.at(-1) as number;
}

/**
 * Chooses a token by the model's own probabilities, without sorting them.
 * @param logits (v)
 */
export function draw(logits: Float32Array, random: Random): number {
  const probabilities = softmax(logits);
  let rest = random.uniform();
  for (const [token, probability] of probabilities.entries()) {
    rest -= probability;
    if (rest < 0) return token;
  }
  return mostLikely(logits); // the sum was rounded to less than 1
}

/** Index of the largest logit; the first one if several are equal. */
export function mostLikely(logits: Float32Array): number {
  let best = 0;
  for (let token = 1; token < logits.length; token++)
    if ((logits[token] as number) > (logits[best] as number)) best = token;
  return best;
}
