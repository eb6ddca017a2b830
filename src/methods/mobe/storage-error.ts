/** Predicts how much an error rises if factors are stored in quantised dtypes. docs/solver.md has the measurements. */
import { type FactorDtype, isQuantisedDtype, type QuantisedName } from '../../checkpoint/factor-dtype.js';
import type { StoredDtypes } from '../factor-storage.js';

type Factors = Readonly<Record<QuantisedName, number>>;

/** The error that storing adds is (factor of A's dtype + factor of B's dtype) · (error of the exact fit)^POWER. */
interface Noise {
  /** Of A, with the ridge of `ridgeFor`. */
  readonly own: Factors;
  readonly shared: Factors;
}

const POWER = 0.3;

/** Of fits without a metric. */
const PLAIN: Noise = {
  own: { int8: 0.0008, fp8: 0.009, int6: 0.009, int5: 0.0145, int4: 0.038 },
  shared: { int8: 0.0002, fp8: 0.002, int6: 0.002, int5: 0.007, int4: 0.028 },
};
/** Of fits in a metric, whose own error is a smaller part of the whole. */
const WEIGHED: Noise = {
  own: { int8: 0.002, fp8: 0.018, int6: 0.018, int5: 0.052, int4: 0.15 },
  shared: { int8: 0.0002, fp8: 0.004, int6: 0.004, int5: 0.016, int4: 0.065 },
};

/**
 * The error that is to be added to that of a fit whose factors are exact.
 * @param exact relative squared error of a fit without a metric
 * @param inMetric whether the fits are made in a metric. The result is then in the unit of `exact`, too
 */
export function storageError({ own, shared }: StoredDtypes, exact: number, inMetric: boolean): number {
  const noise = inMetric ? WEIGHED : PLAIN;
  const of = (factors: Factors, dtype: FactorDtype): number => (isQuantisedDtype(dtype) ? factors[dtype.code] : 0);
  return (of(noise.own, own) + of(noise.shared, shared)) * exact ** POWER;
}
