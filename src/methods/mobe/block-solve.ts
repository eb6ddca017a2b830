/**
 * V·G⁻¹ for positive definite matrices G = F·Fᵀ + λI, by elimination of halves:
 *
 *     G = [P Qᵀ; Q S]   V = [V₁ V₂]   [Z; T] = [V₁; Q]·P⁻¹   Y = (V₂ − Z·Qᵀ)·(S − T·Qᵀ)⁻¹   V·G⁻¹ = [Z − Y·T, Y]
 *
 * Only the lower blocks of G are needed, and of the inverse only the diagonal blocks that are not halved again, the leaves.
 * Leaves are inverted by Newton–Schulz iteration from the leaves of the last step, or eliminated down to single rows.
 */
import {
  add,
  concat,
  div,
  elements,
  identity,
  matmul,
  max,
  mul,
  reshape,
  slice,
  sub,
  type Value,
} from '../../engine/ops.js';
import { type Inverse, RIDGE, ridgeOf, trace } from './inverse.js';

/**
 * The most rows of a leaf. Tracking a leaf of b rows takes 14·b³ operations, so smaller leaves take fewer; but their products
 * are too small to run at full rate.
 */
const LEAF_ROWS = 128;

/** Symmetric matrices (n, size, size), whole or as lower blocks. */
export type Symmetric = Value | Halves;
interface Halves {
  readonly P: Symmetric;
  readonly Q: Value;
  readonly S: Symmetric;
}

/** A solution A = V·G⁻¹. */
export interface Solved {
  readonly A: Value;
  /** V·G⁻¹ for another V, with what was computed for the first. */
  again(V: Value): Value;
}

/** Solves for one leaf, for V (n, any, size). */
type SolveLeaf = (G: Value, V: Value) => Solved;

const isHalves = (G: Symmetric): G is Halves => 'P' in G;
const half = (size: number): number => Math.ceil(size / 2);
const halve = (M: Value, axis: number): [Value, Value] => {
  const size = M.shape[axis] as number;
  return [slice(M, axis, 0, half(size)), slice(M, axis, half(size), size)];
};

/** The rows of each leaf of a matrix, from its top to its bottom. */
export const leafRows = (size: number): number[] =>
  size <= LEAF_ROWS ? [size] : [...leafRows(half(size)), ...leafRows(size - half(size))];

/** The number of elements of all leaves of a matrix. */
export const leafElements = (size: number): number => leafRows(size).reduce((sum, rows) => sum + rows * rows, 0);

/** The shape of the leaves' inverses of `count` matrices: one after another, or as it is if there is only one. */
export const leafShape = (count: number, size: number): number[] =>
  size <= LEAF_ROWS ? [count, size, size] : [count, leafElements(size)];

/** Identities as the inverses of leaves, of `leafShape`. */
export function identityLeaves(count: number, size: number): Float32Array {
  const leaves = leafRows(size).flatMap((rows) =>
    Array.from({ length: rows * rows }, (_, i) => Number(i % (rows + 1) === 0)),
  );
  const all = new Float32Array(count * leaves.length);
  for (let i = 0; i < count; i++) all.set(leaves, i * leaves.length);
  return all;
}

/** The lower blocks of G = FC·Fᵀ + λI, and λ = share·mean(diag), (n, 1, 1). F is (n, r, d), and so is FC, which is F·C in a metric. */
export function gramBlocks(F: Value, FC = F, share = RIDGE): { readonly G: Symmetric; readonly ridge: Value } {
  const rank = F.shape[1] as number;
  const products = blockProducts(F, FC);
  const ridge = ridgeOf(leavesOf(products).map(trace).reduce(add), rank, share);
  const withRidge = (G: Symmetric): Symmetric =>
    isHalves(G) ? { P: withRidge(G.P), Q: G.Q, S: withRidge(G.S) } : add(G, mul(identity(G.shape[1] as number), ridge));
  return { G: withRidge(products), ridge };
}

function blockProducts(F: Value, FC: Value): Symmetric {
  if ((F.shape[1] as number) <= LEAF_ROWS) return matmul(FC, F, { transposeB: true });
  const [top, bottom] = halve(F, 1);
  const [topC, bottomC] = FC === F ? [top, bottom] : halve(FC, 1);
  return {
    P: blockProducts(top, topC),
    Q: matmul(bottomC, top, { transposeB: true }),
    S: blockProducts(bottom, bottomC),
  };
}

const leavesOf = (G: Symmetric): Value[] => (isHalves(G) ? [...leavesOf(G.P), ...leavesOf(G.S)] : [G]);

/** V·G⁻¹, for V (n, p, r). */
export function solve(G: Symmetric, V: Value, solveLeaf: SolveLeaf): Solved {
  if (!isHalves(G)) return solveLeaf(G, V);
  const { P, Q, S } = G;
  const [V1, V2] = halve(V, 2);
  const both = solve(P, concat([V1, Q], 1), solveLeaf);
  const p = V.shape[1] as number;
  const T = slice(both.A, 1, p, both.A.shape[1] as number);
  const right = (rest: Value, Z: Value): Value => sub(rest, matmul(Z, Q, { transposeB: true }));
  const joined = (Z: Value, Y: Value): Value => concat([sub(Z, matmul(Y, T)), Y], 2);
  const Z = slice(both.A, 1, 0, p);
  const lower = solve(downdate(S, T, Q), right(V2, Z), solveLeaf);
  return {
    A: joined(Z, lower.A),
    again(other) {
      const [first, second] = halve(other, 2);
      const left = both.again(first);
      return joined(left, lower.again(right(second, left)));
    },
  };
}

/** S − T·Qᵀ, which is symmetric. */
function downdate(S: Symmetric, T: Value, Q: Value): Symmetric {
  if (!isHalves(S)) return sub(S, matmul(T, Q, { transposeB: true }));
  const [T1, T2] = halve(T, 1);
  const [Q1, Q2] = halve(Q, 1);
  return {
    P: downdate(S.P, T1, Q1),
    Q: sub(S.Q, matmul(T2, Q1, { transposeB: true })),
    S: downdate(S.S, T2, Q2),
  };
}

/**
 * V·G⁻¹ by elimination down to single rows, for a whole G. In a metric, G is far worse conditioned than F·Fᵀ (10⁶ was seen), and a
 * step of the bases changes its inverse by large factors. Iterations from the last inverse then seldom converge, and no inverse in
 * f32 is exact enough, but an elimination without one is. It takes about 17 small operations for each row, so it is slow on
 * graphics devices.
 */
export const eliminate: SolveLeaf = (G, V) => {
  if (G.shape[1] === 1) return { A: div(V, G), again: (other) => div(other, G) };
  const [top, bottom] = halve(G, 1);
  const [Q, S] = halve(bottom, 2);
  return solve({ P: halve(top, 2)[0], Q, S }, V, eliminate);
};

/** A SolveLeaf that goes on from the leaves of an earlier step, and gathers the new ones. */
export interface LeafTracker {
  readonly solveLeaf: SolveLeaf;
  /** After the solve: X of all leaves as `known`, and the largest residual. */
  gather(): Inverse;
}

/**
 * Improves the inverses of leaves by `iterate`.
 * @param known X of each leaf, of `leafShape`
 */
export function trackLeaves(known: Value, iterate: (G: Value, X: Value) => Inverse): LeafTracker {
  const count = known.shape[0] as number;
  const found: Inverse[] = [];
  let at = 0;
  const next = (rows: number): Value => {
    if (known.shape.length === 3) return known;
    const start = at;
    at += rows * rows;
    return reshape(slice(known, 1, start, at), [count, rows, rows]);
  };
  return {
    solveLeaf(G, V) {
      const inverse = iterate(G, next(G.shape[1] as number));
      found.push(inverse);
      return { A: matmul(V, inverse.X), again: (other) => matmul(other, inverse.X) };
    },
    gather() {
      const isOnly = known.shape.length === 3;
      const asKnown = (X: Value): Value => (isOnly ? X : reshape(X, [count, elements(X.shape) / count]));
      const X = concat(
        found.map((it) => asKnown(it.X)),
        1,
      );
      const residuals = found.map(({ residual }) => residual);
      return { X, residual: isOnly ? (residuals[0] as Value) : max(concat(residuals, 0), [0]) };
    },
  };
}
