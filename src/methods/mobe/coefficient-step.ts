/**
 * Adam on α, with a step relative to α's own size: α and B may trade a factor, so no absolute step suits every run. It has
 * n·m entries: too few to be worth a tensor program.
 */

export const COEFFICIENT_VARIANCE_DECAY = 0.999;

export interface Coefficients {
  readonly coefficients: Float32Array;
  readonly moments: { readonly mean: Float32Array; readonly variance: Float32Array };
}

export interface CoefficientStep {
  /** In units of the root mean square of α. */
  rate: number;
  momentum: number;
  meanCorrection: number;
  varianceCorrection: number;
}

export function moveCoefficients(
  { coefficients, moments }: Coefficients,
  gradient: Float32Array,
  { rate, momentum, meanCorrection, varianceCorrection }: CoefficientStep,
): Coefficients {
  const next = new Float32Array(coefficients.length);
  const mean = new Float32Array(coefficients.length);
  const variance = new Float32Array(coefficients.length);
  const step = rate * rootMeanSquare(coefficients) * meanCorrection;
  for (let i = 0; i < next.length; i++) {
    const g = gradient[i] as number;
    mean[i] = momentum * (moments.mean[i] as number) + (1 - momentum) * g;
    variance[i] =
      COEFFICIENT_VARIANCE_DECAY * (moments.variance[i] as number) + (1 - COEFFICIENT_VARIANCE_DECAY) * g * g;
    const scale = Math.sqrt((variance[i] as number) * varianceCorrection) + 1e-30;
    next[i] = (coefficients[i] as number) - (step * (mean[i] as number)) / scale;
  }
  return { coefficients: next, moments: { mean, variance } };
}

const rootMeanSquare = (values: Float32Array): number =>
  Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
