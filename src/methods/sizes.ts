/** What follows from the shapes that a method stores. */
import type { FactorShape, GroupShape, MethodProblem, StoredFactors } from './method.js';

/** Parameters of the factors of `experts` experts. */
export function storedParameters({ shared, byExpert }: StoredFactors, experts: number): number {
  return sum(shared) + experts * sum(byExpert);
}

const sum = (factors: readonly FactorShape[]): number =>
  factors.reduce((total, { shape }) => total + shape.reduce((product, size) => product * size, 1), 0);

/** Parameters of a group's factors. */
export const groupParameters = ({ method, problem }: MethodProblem): number =>
  storedParameters(method.stores(problem), problem.experts);

/** Parameters of the dense weights: n·p·d. */
export const denseParameters = ({ experts, rows, cols }: GroupShape): number => experts * rows * cols;
