/** Predicts how much an error rises if factors are stored in quantised dtypes. docs/solver.md has the measurements. */
import { type FactorDtype, isQuantisedDtype, type QuantisedName } from '../../checkpoint/factor-dtype.js';
import type { StoredDtypes } from '../factor-storage.js';

/**
 * The error that storing adds is a factor · (error of the exact fit)^POWER. It falls more slowly than that of the exact fit, because a group
 * with more bases has as large an A to round.
 */
const POWER = 0.3;
type Factors = Readonly<Record<QuantisedName, number>>;
/** By the dtype of A, for fits without a metric. */
const PLAIN: Factors = { int8: 0.001, fp8: 0.012, int6: 0.012, int5: 0.02, int4: 0.055 };
/** For fits in a metric, whose own error is a smaller part of the whole. */
const WEIGHED: Factors = { int8: 0.0022, fp8: 0.021, int6: 0.021, int5: 0.046, int4: 0.136 };

/** The dtype of A with which bases of a dtype go. Bases in four bits go with none, and A in four bits is as coarse. */
const OWN_OF: Readonly<Record<QuantisedName, QuantisedName>> = {
  int8: 'int8',
  fp8: 'fp8',
  int6: 'int6',
  int5: 'int4',
  int4: 'int4',
};

/**
 * The error that is to be added to that of a fit whose factors are exact, for dtypes with the ridge of `ridgeFor`. The coarser of the two
 * dtypes counts.
 * @param exact relative squared error of a fit without a metric
 * @param inMetric whether the fits are made in a metric. The result is then in the unit of `exact`, too
 */
export function storageError({ own, shared }: StoredDtypes, exact: number, inMetric: boolean): number {
  const factors = inMetric ? WEIGHED : PLAIN;
  const factorOf = (dtype: FactorDtype, name: (code: QuantisedName) => QuantisedName): number =>
    isQuantisedDtype(dtype) ? factors[name(dtype.code)] : 0;
  return (
    Math.max(
      factorOf(own, (code) => code),
      factorOf(shared, (code) => OWN_OF[code]),
    ) *
    exact ** POWER
  );
}
