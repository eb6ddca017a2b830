/** Predicts how much an error rises if factors are stored in quantised dtypes. docs/solver.md has the measurements. */
import { type FactorDtype, isQuantisedDtype, type QuantisedName } from '../../checkpoint/factor-dtype.js';
import type { StoredDtypes } from '../factor-storage.js';

/** The least of these errors is that of eight bits; each bit less multiplies it. By the dtype of A. */
interface Noise {
  /** The error that storing adds is `factor` · (error of the exact fit)^`power`. */
  readonly factors: Readonly<Record<QuantisedName, number>>;
  readonly power: number;
}

/** Fits without a metric. */
const PLAIN: Noise = { factors: { int8: 0.001, fp8: 0.01, int6: 0.01, int5: 0.02, int4: 0.05 }, power: 0.3 };
/** Fits in a metric. */
const WEIGHED: Noise = { factors: { int8: 0.002, fp8: 0.02, int6: 0.02, int5: 0.04, int4: 0.1 }, power: 0.3 };

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
  const { factors, power } = inMetric ? WEIGHED : PLAIN;
  const factorOf = (dtype: FactorDtype, name: (code: QuantisedName) => QuantisedName): number =>
    isQuantisedDtype(dtype) ? factors[name(dtype.code)] : 0;
  return (
    Math.max(
      factorOf(own, (code) => code),
      factorOf(shared, (code) => OWN_OF[code]),
    ) *
    exact ** power
  );
}
