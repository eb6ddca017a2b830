import { type FactorDtype, isQuantisedDtype, type QuantisedName } from '../../checkpoint/factor-dtype.js';

/** Chosen for A in this dtype and B in the one that goes with it. docs/solver.md has the measurements. */
export const RIDGES: Readonly<Record<QuantisedName, number>> = {
  int8: 1e-4,
  fp8: 3e-4,
  int6: 3e-4,
  int5: 1e-3,
  int4: 3e-3,
};

/**
 * The ridge of a fit whose A will be stored in a dtype: the coarser its codes, the more an exact fit is worth giving up for factors
 * that multiply rounding errors less. Undefined for floats.
 */
export const ridgeFor = (dtype: FactorDtype): number | undefined =>
  isQuantisedDtype(dtype) ? RIDGES[dtype.code] : undefined;
