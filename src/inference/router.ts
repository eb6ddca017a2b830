/** Chooses each token's experts and their weights. It runs on the host, because a token has only n numbers. */

/** How a model routes tokens. */
export interface RouterRule {
  /** Number of experts a token, k. */
  readonly expertsPerToken: number;
  /** Function that turns logits into scores. */
  readonly score: 'softmax' | 'sigmoid';
  /**
   * Only experts of the `kept` best of `count` groups can be chosen. A group's value is the sum of its `top` best scores.
   */
  readonly groups?: { readonly count: number; readonly kept: number; readonly top: number } | undefined;
  /** Whether the chosen experts' weights are divided by their sum. */
  readonly normalised: boolean;
  /** Final factor of the weights. */
  readonly scale: number;
}

/** The experts of t tokens, k each. */
export interface Routing {
  /** (t, k) */
  readonly experts: Int32Array;
  /** (t, k) f32 */
  readonly weights: Float32Array;
}

/** Added to the sum, as in DeepSeek's code, to avoid division by 0. */
const LEAST_SUM = 1e-20;

/**
 * Routes t tokens.
 * @param logits (t, n)
 * @param experts n
 * @param bias (n), added to the scores when experts are chosen, but not to their weights
 */
export function route(rule: RouterRule, logits: Float32Array, experts: number, bias?: Float32Array): Routing {
  const { expertsPerToken: k, score, groups, normalised, scale } = rule;
  const tokens = logits.length / experts;
  const routing: Routing = { experts: new Int32Array(tokens * k), weights: new Float32Array(tokens * k) };
  for (let t = 0; t < tokens; t++) {
    const row = logits.subarray(t * experts, (t + 1) * experts);
    const scores = score === 'softmax' ? softmax(row) : Float64Array.from(row, (x) => 1 / (1 + Math.exp(-x)));
    let eligible = bias ? scores.map((x, e) => x + (bias[e] as number)) : scores;
    if (groups) eligible = withinBestGroups(eligible, groups);
    const chosen = largest(eligible, k);
    const sum = normalised ? chosen.reduce((total, e) => total + (scores[e] as number), LEAST_SUM) : 1;
    for (const [i, expert] of chosen.entries()) {
      routing.experts[t * k + i] = expert;
      routing.weights[t * k + i] = ((scores[expert] as number) / sum) * scale;
    }
  }
  return routing;
}

function withinBestGroups(
  scores: Float64Array,
  { count, kept, top }: { count: number; kept: number; top: number },
): Float64Array {
  const size = scores.length / count;
  const worth = Float64Array.from({ length: count }, (_, group) => {
    const own = scores.subarray(group * size, (group + 1) * size);
    return largest(own, top).reduce((sum, i) => sum + (own[i] as number), 0);
  });
  const best = new Set(largest(worth, kept));
  return scores.map((score, expert) => (best.has(Math.floor(expert / size)) ? score : Number.NEGATIVE_INFINITY));
}

/** Indices of the k largest values, the largest first. Among equal values the lower index comes first. */
export function largest(values: Float64Array | Float32Array, k: number): number[] {
  const found: number[] = [];
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    let at = found.length;
    while (at > 0 && value > (values[found[at - 1] as number] as number)) at--;
    if (at >= k) continue;
    found.splice(at, 0, i);
    if (found.length > k) found.pop();
  }
  return found;
}

/** Softmax in f64. */
export function softmax(logits: Float32Array): Float64Array {
  const top = logits.reduce((most, x) => Math.max(most, x), Number.NEGATIVE_INFINITY);
  const exps = Float64Array.from(logits, (x) => Math.exp(x - top));
  const sum = exps.reduce((total, x) => total + x, 0);
  return exps.map((x) => x / sum);
}
