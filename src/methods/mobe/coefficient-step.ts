/**
 * Adam on α, with a step relative to the size of α. A factor can move between α and B, so no absolute step fits all runs. α has
 * only n·m entries, too few for a tensor program.
 */

export const COEFFICIENT_VARIANCE_DECAY = 0.999;

/** α (n, m) and its moments. */
export interface Coefficients {
  readonly coefficients: Float32Array;
  readonly moments: { readonly mean: Float32Array; readonly variance: Float32Array };
}

/** The parameters of one step. */
export interface CoefficientStep {
  /** The step's size, in units of the root mean square of α. */
  rate: number;
  momentum: number;
  meanCorrection: number;
  varianceCorrection: number;
}

/** Takes one step. Returns new arrays. */
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
