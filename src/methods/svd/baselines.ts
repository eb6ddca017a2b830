/**
 * What a factorisation must beat: truncated singular value decompositions with no more parameters. Their errors follow
 * from the singular values alone (Eckart–Young), so no factors are formed.
 */
import { reduce } from '../../linalg/lapack/bidiagonalise.js';
import { bidiagonalSvd } from '../../linalg/lapack/divide-and-conquer.js';
import { addScaled } from '../../linalg/vectors.js';

/** The largest rank that a budget allows, and what it takes of it. */
export interface Rank {
  readonly rank: number;
  readonly parameters: number;
}

export interface Baseline extends Rank {
  /** ‖W − Ŵ‖/‖W‖ over all experts, in exact arithmetic. */
  readonly relativeError: number;
}

/** `perRank`: parameters for each unit of rank; `most`: the rank that leaves no error. */
export function rankWithin(parameters: number, perRank: number, most: number): Rank {
  const rank = Math.min(Math.floor(parameters / perRank), most);
  return { rank, parameters: rank * perRank };
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
 * All experts in one space, as MoLAE has it (arXiv 2503.23100): W_i ≈ A_i·B, n·p·k + k·d parameters. The best B are the
 * first right singular vectors of the experts stacked.
 */
export function sharedBasisSvd(
  experts: readonly Float32Array[],
  rows: number,
  cols: number,
  parameters: number,
): Baseline {
  return groupedSvd(experts, rows, cols, parameters, 1);
}

/**
 * Consecutive experts stacked into `groups` matrices, each with one right factor: Σ k·(n_g·p + d) parameters. With m
 * groups it is the start of the reference's solver, with others MoLAE's grouped variant.
 */
export function groupedSvd(
  experts: readonly Float32Array[],
  rows: number,
  cols: number,
  parameters: number,
  groups: number,
): Baseline {
  const fits = rankWithin(parameters, experts.length * rows + groups * cols, cols);
  let kept = 0;
  let whole = 0;
  for (let g = 0; g < groups; g++) {
    const members = experts.slice(
      Math.floor((g * experts.length) / groups),
      Math.floor(((g + 1) * experts.length) / groups),
    );
    const energies = singularEnergies(members, rows, cols);
    kept += energies.subarray(0, fits.rank).reduce((a, b) => a + b, 0);
    whole += energies.reduce((a, b) => a + b, 0);
  }
  return { ...fits, relativeError: Math.sqrt(Math.max(0, 1 - kept / whole)) };
}

/** Squared singular values of the stacked experts, largest first: those of Σ WᵀW, (d, d), in f64. */
function singularEnergies(members: readonly Float32Array[], rows: number, cols: number): Float64Array {
  const gram = new Float64Array(cols * cols);
  const row = new Float64Array(cols);
  for (const values of members) {
    for (let i = 0; i < rows; i++) {
      row.set(values.subarray(i * cols, (i + 1) * cols));
      for (let j = 0; j < cols; j++) addScaled(gram, j * cols, row[j] as number, row, 0, cols);
    }
  }
  const { diagonal, superdiagonal } = reduce(gram, cols, cols);
  return bidiagonalSvd(diagonal, superdiagonal, 0).values;
}
