/** Counts of parameters that follow from the shapes of a method's factors. */
import type { FactorShape, GroupShape, MethodProblem, StoredFactors } from './method.js';

/** The number of parameters of a group of `experts` experts. */
export function storedParameters({ shared, byExpert }: StoredFactors, experts: number): number {
  return sum(shared) + experts * sum(byExpert);
}

const sum = (factors: readonly FactorShape[]): number =>
  factors.reduce((total, { shape }) => total + shape.reduce((product, size) => product * size, 1), 0);

/** The number of parameters of a group's factors. */
export const groupParameters = ({ method, problem }: MethodProblem): number =>
  storedParameters(method.stores(problem), problem.experts);

/** The number of dense weights: n·p·d. */
export const denseParameters = ({ experts, rows, cols }: GroupShape): number => experts * rows * cols;
