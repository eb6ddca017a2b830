import { abs, add, constant, div, mul, sigmoid, square, sub, tanh, type Value } from '../../engine/ops.js';
import type { Activation } from './problem.js';

/** f and f′ of each element. A traced graph leaves out values that no output needs, so an unused derivative costs nothing. */
interface Activated {
  /** f(x) */
  readonly value: Value;
  /** f′(x) */
  readonly derivative: Value;
}

/** GELU's tanh form (Hendrycks & Gimpel 2016), ½x(1 + tanh(√(2/π)(x + 0.044715x³))) = x·σ(x(a + bx²)). */
const GELU_LINEAR = 2 * Math.sqrt(2 / Math.PI);
const GELU_CUBIC = 0.044715 * GELU_LINEAR;

/** Smaller than every |x| that matters. With it, relu′(0) is 0, as in PyTorch. */
const TINY = 1e-30;

const RULES: Record<Activation, (x: Value) => Activated> = {
  silu(x) {
    const s = sigmoid(x);
    const value = mul(x, s);
    return { value, derivative: add(s, mul(value, sub(1, s))) }; // s + x·s·(1−s)
  },
  tanh(x) {
    const value = tanh(x);
    return { value, derivative: sub(1, square(value)) };
  },
  gelu(x) {
    const cubic = mul(square(x), GELU_CUBIC);
    const s = sigmoid(mul(x, add(cubic, GELU_LINEAR)));
    const value = mul(x, s);
    return { value, derivative: add(s, mul(mul(value, sub(1, s)), add(mul(cubic, 3), GELU_LINEAR))) };
  },
  relu(x) {
    const size = abs(x);
    const value = mul(add(x, size), 0.5);
    return { value, derivative: div(value, add(size, TINY)) };
  },
  sigmoid(x) {
    const value = sigmoid(x);
    return { value, derivative: mul(value, sub(1, value)) };
  },
  none: (x) => ({ value: x, derivative: constant(1) }),
};

/** f(x) and f′(x), computed from shared values. */
export const activateWithDerivative = (activation: Activation, x: Value): Activated => RULES[activation](x);

/** f(x). */
export const activate = (activation: Activation, x: Value): Value => RULES[activation](x).value;
