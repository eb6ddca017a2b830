import { describe, expect, test } from 'vitest';
import { type Exact, evaluate } from '../../../fixtures/oracle.js';
import { trace } from '../../engine/graph.js';
import { activateWithDerivative } from './activation.js';
import { ACTIVATIONS, type Activation } from './problem.js';

/** The definitions in PyTorch's documentation. */
const DEFINITIONS: Record<Activation, (x: number) => number> = {
  silu: (x) => x / (1 + Math.exp(-x)),
  tanh: Math.tanh,
  gelu: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu: (x) => Math.max(0, x),
  sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  none: (x) => x,
};

const POINTS = [-6, -2.5, -1, -0.3, -1e-3, 1e-3, 0.4, 1.2, 3, 7];
const STEP = 1e-5;

/** f and f′ of the traced program, in f64. */
function run(activation: Activation, points: readonly number[]): { value: number[]; derivative: number[] } {
  const graph = trace({ x: [points.length] }, ({ x }) => ({ ...activateWithDerivative(activation, x) }));
  const exact = evaluate(graph, { x: points });
  const { value, derivative } = Object.fromEntries(exact) as Record<string, Exact>;
  // The identity's derivative is a scalar.
  const slopes = derivative?.values ?? [];
  return { value: value?.values ?? [], derivative: points.map((_, i) => slopes[slopes.length > 1 ? i : 0] as number) };
}

describe.each(ACTIVATIONS)('%s', (activation) => {
  test('is what its name says', () => {
    for (const [i, value] of run(activation, POINTS).value.entries())
      expect(value).toBeCloseTo(DEFINITIONS[activation](POINTS[i] as number), 6);
  });

  test('its derivative is the slope of its values', () => {
    const { derivative } = run(activation, POINTS);
    const above = run(
      activation,
      POINTS.map((x) => x + STEP),
    ).value;
    const below = run(
      activation,
      POINTS.map((x) => x - STEP),
    ).value;
    for (const [i, slope] of derivative.entries())
      expect(slope).toBeCloseTo(((above[i] as number) - (below[i] as number)) / (2 * STEP), 6);
  });
});

test('relu is flat at 0, as in PyTorch', () => {
  expect(run('relu', [0, -0])).toEqual({ value: [0, 0], derivative: [0, 0] });
});
