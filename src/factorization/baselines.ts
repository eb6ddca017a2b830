/**
 * What a factorisation must beat: truncated singular value decompositions with no more parameters. Their errors follow
 * from the singular values alone (Eckart–Young), so no factors are formed.
 */
import { EigenvalueDecomposition, Matrix } from 'ml-matrix';

export interface Baseline {
  readonly rank: number;
  readonly parameters: number;
  /** ‖W − Ŵ‖/‖W‖ over all experts, in exact arithmetic. */
  readonly relativeError: number;
}

/** Every expert by itself: W_i ≈ U_i V_i, n·k·(p + d) parameters. Experts: (p, d) row-major each. */
export function perExpertSvd(
  experts: readonly Float32Array[],
  rows: number,
  cols: number,
  parameters: number,
): Baseline {
  return groupedSvd(experts, rows, cols, parameters, experts.length);
}

/**
 * Consecutive experts stacked into `groups` matrices, each with one right factor: Σ k·(n_g·p + d) parameters. With one
 * group all experts share their rows' space (as MoLAE does); with m groups it is the start of the reference's solver.
 */
export function groupedSvd(
  experts: readonly Float32Array[],
  rows: number,
  cols: number,
  parameters: number,
  groups: number,
): Baseline {
  const perRank = experts.length * rows + groups * cols;
  const rank = Math.floor(parameters / perRank);
  let kept = 0;
  let whole = 0;
  for (let g = 0; g < groups; g++) {
    const members = experts.slice(
      Math.floor((g * experts.length) / groups),
      Math.floor(((g + 1) * experts.length) / groups),
    );
    const energies = singularEnergies(members, rows, cols);
    kept += energies.slice(0, rank).reduce((a, b) => a + b, 0);
    whole += energies.reduce((a, b) => a + b, 0);
  }
  return { rank, parameters: rank * perRank, relativeError: Math.sqrt(Math.max(0, 1 - kept / whole)) };
}

/** Squared singular values of the stacked experts, largest first: eigenvalues of the smaller Gram matrix, in f64. */
function singularEnergies(members: readonly Float32Array[], rows: number, cols: number): number[] {
  const stacked = new Matrix(members.length * rows, cols);
  for (const [e, values] of members.entries()) {
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < cols; j++) stacked.set(e * rows + i, j, values[i * cols + j] as number);
  }
  const transposed = stacked.transpose();
  const gram = stacked.rows < cols ? stacked.mmul(transposed) : transposed.mmul(stacked);
  return new EigenvalueDecomposition(gram, { assumeSymmetric: true }).realEigenvalues
    .map((value) => Math.max(0, value))
    .sort((a, b) => b - a);
}
