/** Which experts a token goes to, and how much each counts. On the host: n numbers a token. */

export interface RouterRule {
  /** k */
  readonly expertsPerToken: number;
  /** What logits become. */
  readonly score: 'softmax' | 'sigmoid';
  /**
   * Only experts of the `kept` best of `count` groups are eligible; a group is worth the sum of its `top` best scores.
   */
  readonly groups?: { readonly count: number; readonly kept: number; readonly top: number } | undefined;
  /** The chosen experts' weights are divided by their sum. */
  readonly normalised: boolean;
  /** Of the weights, at last. */
  readonly scale: number;
}

export interface Routing {
  /** (t, k) */
  readonly experts: Int32Array;
  /** (t, k) f32 */
  readonly weights: Float32Array;
}

/** DeepSeek's guard against a sum of 0. */
const LEAST_SUM = 1e-20;

/**
 * @param logits (t, n)
 * @param bias (n), added to the scores for choosing alone
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

/** Numbers of the k largest values, the largest first; of equal ones the first. */
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

export function softmax(logits: Float32Array): Float64Array {
  const top = logits.reduce((most, x) => Math.max(most, x), Number.NEGATIVE_INFINITY);
  const exps = Float64Array.from(logits, (x) => Math.exp(x - top));
  const sum = exps.reduce((total, x) => total + x, 0);
  return exps.map((x) => x / sum);
}
