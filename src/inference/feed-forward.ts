/** Programs of gated feed-forward layers: experts, shared experts and dense layers. */
import { trace } from '../engine/graph.js';
import { add, matmul, mul, sub, type Value } from '../engine/ops.js';
import { activate } from '../methods/mobe/activation.js';
import type { Activation } from '../methods/mobe/problem.js';
import { linear } from './attention.js';
import { rmsNorm } from './rms-norm.js';

/** Sizes of a layer d → p → d: tokens t, width d, rows p. */
export interface GatedSizes {
  readonly tokens: number;
  readonly width: number;
  readonly rows: number;
}

/** Rank r of each projection that is stored as factors. */
export type Ranks = Readonly<Partial<Record<'gate' | 'up' | 'down', number>>>;

/** Shapes of the weights: `gate` (p, d), or `gateA` (p, r) and `gateF` (r, d) with W = A·F; likewise `up`. `down` is (d, p); its factors are of its transpose. */
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

/** down · (silu(gate · x) ⊙ up · x). Factors are applied one after the other: A·(F·x). */
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

/** Sizes of `replacedDifferences`. */
export interface ReplacedSizes extends GatedSizes {
  /** The matrices that are replaced, each by itself. */
  readonly replaced: ReadonlyArray<'gate' | 'up' | 'down'>;
}

/**
 * x (t, d) → y (t, d), and for each replaced matrix ŷ − y, the change if it alone is replaced. The new matrices are `gateNew` (p, d), `upNew` (p, d) and `downNew` (p, d), which is transposed, as down is factorised.
 */
export const replacedDifferences = ({ tokens, width, rows, replaced }: ReplacedSizes) =>
  trace<string, string>(
    {
      ...gatedShapes({ width, rows }),
      ...Object.fromEntries(replaced.map((name) => [`${name}New`, [rows, width]])),
      x: [tokens, width],
    },
    ({ x: input, gate, up, down, gateNew, upNew, downNew }) => {
      const x = input as Value;
      const before = { gate: activate('silu', linear(x, gate as Value)), up: linear(x, up as Value) };
      // The difference is taken before the last product, where it loses fewer digits.
      const changes = {
        ...(gateNew && { gate: mul(sub(activate('silu', linear(x, gateNew)), before.gate), before.up) }),
        ...(upNew && { up: mul(before.gate, sub(linear(x, upNew), before.up)) }),
      };
      const inner = mul(before.gate, before.up);
      const y = linear(inner, down as Value);
      return {
        y,
        ...Object.fromEntries(Object.entries(changes).map(([name, it]) => [name, linear(it, down as Value)])),
        ...(downNew && { down: sub(matmul(inner, downNew), y) }),
      };
    },
  );

/** hidden (t, d) → hidden (t, d): a dense layer with its norm and the residual. */
export const dense = ({ tokens, epsilon, ...sizes }: GatedSizes & { readonly epsilon: number }) =>
  trace<string, string>(
    { ...gatedShapes(sizes), norm: [sizes.width], hidden: [tokens, sizes.width] },
    ({ hidden, norm, ...it }) => ({
      hidden: add(hidden as Value, gatedOutput(rmsNorm(hidden as Value, norm as Value, epsilon), it)),
    }),
  );

/**
 * The first program of a layer of experts: hidden (t, d) → normalised x (t, d), router logits (t, n) and `base` (t, d). `base`
 * is hidden plus the shared experts' output, or hidden alone without shared experts.
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
