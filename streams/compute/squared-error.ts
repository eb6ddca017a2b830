export interface SquaredError {
  /** Σ(W − Ŵ)² of what is written, in the weights' own units. */
  readonly squaredError: number;
  /** ΣW² */
  readonly squaredNorm: number;
}

/** Summed in f64. */
export function squaredError(weights: Float32Array, rebuilt: Float32Array): SquaredError {
  let error = 0;
  let norm = 0;
  for (let i = 0; i < weights.length; i++) {
    const w = weights[i] as number;
    const difference = w - (rebuilt[i] as number);
    error += difference * difference;
    norm += w * w;
  }
  return { squaredError: error, squaredNorm: norm };
}

export const addErrors = (a: SquaredError, b: SquaredError): SquaredError => ({
  squaredError: a.squaredError + b.squaredError,
  squaredNorm: a.squaredNorm + b.squaredNorm,
});

export const NO_ERROR: SquaredError = { squaredError: 0, squaredNorm: 0 };

/** ‖W − Ŵ‖/‖W‖ */
export const relativeError = ({ squaredError, squaredNorm }: SquaredError): number =>
  Math.sqrt(squaredError / squaredNorm);
