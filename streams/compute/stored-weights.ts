/** Weights and factors as they are stored, for a compute thread. */
import type { FloatDtype } from '../../src/checkpoint/dtype.js';
import { decodeMatrix, type MatrixFormat, type MatrixShape } from '../../src/checkpoint/stored-matrix.js';
import type { FactorForm, StoredDtypes, StoredParts } from '../../src/methods/factor-storage.js';
import type { GroupShape } from '../../src/methods/method.js';
import { methodNamed } from '../../src/methods/registry.js';

/** Finished factors of a group, for `rebuild` and `compare`. */
export interface LoadedFactors {
  /** The method's name. */
  readonly method: string;
  readonly problem: GroupShape;
  readonly dtype: FloatDtype;
  readonly stored: StoredDtypes;
  /** As in `FitOptions`, if factors of experts will be fitted. */
  readonly ridge?: number | undefined;
  /** The size and orientation of the dense weights. */
  readonly format: MatrixShape;
  /** The parts of the shared factors (`NamedPart.key`). */
  readonly shared: StoredParts;
}

/** The form in which loaded factors are stored. */
export const loadedForm = ({ method, ...form }: LoadedFactors): FactorForm => ({
  ...form,
  method: methodNamed(method),
});

/** One expert's dense weights, as `readMatrix` reads them. */
export interface StoredWeights {
  readonly format: MatrixFormat;
  readonly bytes: Uint8Array;
}

/** Decodes one expert's weights, in the stored orientation. */
export function decodeAsStored({ format, bytes }: StoredWeights): Float32Array {
  const values = new Float32Array(format.rows * format.cols);
  decodeMatrix({ ...format, transposed: false }, bytes, values);
  return values;
}
