/** The gated feed-forward layers of experts, shared experts and dense layers, as programs. */
import { trace } from '../engine/graph.js';
import { add, matmul, mul, type Value } from '../engine/ops.js';
import { activate } from '../methods/mobe/activation.js';
import type { Activation } from '../methods/mobe/problem.js';
import { linear } from './attention.js';
import { rmsNorm } from './rms-norm.js';

/** d → p → d. */
export interface GatedSizes {
  readonly tokens: number;
  readonly width: number;
  readonly rows: number;
}

/** Rank r of each projection that comes as factors. */
export type Ranks = Readonly<Partial<Record<'gate' | 'up' | 'down', number>>>;

/** Shapes of the weights: `gate` (p, d), or `gateA` (p, r) and `gateF` (r, d), with W = A·F; down (d, p) is their transpose. */
export function gatedShapes({ width, rows }: Omit<GatedSizes, 'tokens'>, ranks: Ranks = {}): Record<string, number[]> {
  const shapes: Record<string, number[]> = {};
  for (const name of ['gate', 'up', 'down'] as const) {
    const rank = ranks[name];
    if (rank === undefined) shapes[name] = name === 'down' ? [width, rows] : [rows, width];
    else {
      shapes[`${name}A`] = [rows, rank];
      shapes[`${name}F`] = [rank, width];
    }
  }
  return shapes;
}

/** down · (silu(gate · x) ⊙ up · x), factors one after the other: A·(F·x). */
function gatedOutput(x: Value, it: Readonly<Record<string, Value>>): Value {
  const into = (name: 'gate' | 'up'): Value => {
    const whole = it[name];
    return whole ? linear(x, whole) : linear(linear(x, it[`${name}F`] as Value), it[`${name}A`] as Value);
  };
  const inner = mul(activate('silu', into('gate')), into('up'));
  return it.down ? linear(inner, it.down) : matmul(matmul(inner, it.downA as Value), it.downF as Value);
}

/** x (t, d) → y (t, d): one expert. */
export const gated = ({ tokens, ranks, ...sizes }: GatedSizes & { readonly ranks: Ranks }) =>
  trace<string, string>({ ...gatedShapes(sizes, ranks), x: [tokens, sizes.width] }, (it) => ({
    y: gatedOutput(it.x as Value, it),
  }));

/** hidden (t, d) → hidden (t, d): a dense layer with its norm and the residual. */
export const dense = ({ tokens, epsilon, ...sizes }: GatedSizes & { readonly epsilon: number }) =>
  trace<string, string>(
    { ...gatedShapes(sizes), norm: [sizes.width], hidden: [tokens, sizes.width] },
    ({ hidden, norm, ...it }) => ({
      hidden: add(hidden as Value, gatedOutput(rmsNorm(hidden as Value, norm as Value, epsilon), it)),
    }),
  );

/**
 * What a layer of experts begins with: hidden (t, d) → x (t, d) normalised, and logits (t, n); where there are shared experts
 * `base` is hidden and their output, else hidden alone.
 */
export const beforeExperts = ({
  tokens,
  width,
  experts,
  sharedRows,
  epsilon,
}: {
  tokens: number;
  width: number;
  experts: number;
  sharedRows: number;
  epsilon: number;
}) =>
  trace<string, string>(
    {
      ...(sharedRows ? gatedShapes({ width, rows: sharedRows }) : {}),
      norm: [width],
      router: [experts, width],
      hidden: [tokens, width],
    },
    ({ hidden, norm, router, ...shared }) => {
      const x = rmsNorm(hidden as Value, norm as Value, epsilon);
      const base = sharedRows ? add(hidden as Value, gatedOutput(x, shared)) : (hidden as Value);
      return { x, logits: linear(x, router as Value), base };
    },
  );

/** F = f(Σ_k α_k B_k) of one expert. B: (m, r·d), alpha: (1, m) → F (1, r·d). */
export const mixBases = ({ bases, size, activation }: { bases: number; size: number; activation: Activation }) =>
  trace({ B: [bases, size], alpha: [1, bases] }, ({ B, alpha }) => ({ F: activate(activation, matmul(alpha, B)) }));
