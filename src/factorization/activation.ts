import { add, mul, sigmoid, square, sub, tanh, type Value } from '../engine/ops.js';
import type { Activation } from './problem.js';

/** f, elementwise. */
export const activate = (activation: Activation, x: Value): Value =>
  activation === 'silu' ? mul(x, sigmoid(x)) : tanh(x);

/** f′, given x and f(x). */
export function derivative(activation: Activation, x: Value, fx: Value): Value {
  if (activation === 'tanh') return sub(1, square(fx));
  const s = sigmoid(x); // silu′ = s + x·s·(1−s) = s + f·(1−s)
  return add(s, mul(fx, sub(1, s)));
}

/** f and f′ at once, from one sigmoid. */
export function activateWithDerivative(activation: Activation, x: Value): { value: Value; derivative: Value } {
  if (activation === 'tanh') {
    const value = tanh(x);
    return { value, derivative: sub(1, square(value)) };
  }
  const s = sigmoid(x);
  const value = mul(x, s);
  return { value, derivative: add(s, mul(value, sub(1, s))) };
}
