/** Defaults that follow the source: experts that are stored in few bits become factors in few bits. */
import { floatDtypeOf } from '../checkpoint/encoding.js';
import { dtypeName, isQuantisedName, type QuantisedName } from '../checkpoint/factor-dtype.js';
import { matrixBytes } from '../checkpoint/stored-matrix.js';
import { DEFAULT_METHOD } from '../methods/registry.js';
import { type MoeModel, PROJECTIONS } from '../models/family.js';
import { limitsBytes } from './allocation-options.js';
import { type CompressOptions, type DtypeName, decodedDtype } from './settings.js';

/**
 * With 8 bits a weight in the source, int8 is of the same size as fp8 and more exact. With about 4, the default share of the parameters in 5
 * bits would be as large as the source.
 */
const BITS_OF_INT8 = 8;
const DEFAULTS = { wide: 'int8', narrow: 'int4' } as const satisfies Record<string, QuantisedName>;

/**
 * Fills in the dtype of factors, and the projections, if the source's experts are quantised. A projection that stays dense would be
 * decoded to 16 bits, so all are factorised, unless `keepQuantized` is given. Options that are given stay. An allocation of bytes
 * chooses the dtype by itself.
 */
export function followSource({ layers }: MoeModel, options: CompressOptions): CompressOptions {
  const usual = narrowDtype(layers);
  const { method = DEFAULT_METHOD.name, dtype = usual, projections, keepQuantized } = options;
  if (method !== DEFAULT_METHOD.name || usual === undefined || !isQuantisedName(dtype)) return options;
  return {
    ...options,
    dtype: limitsBytes(options) ? options.dtype : dtype,
    projections: projections ?? (keepQuantized ? undefined : [...PROJECTIONS]),
  };
}

/** The options with float factors in place of quantised ones. Everything else follows the source as with quantised ones. */
export function withFloats(model: MoeModel, options: CompressOptions): CompressOptions {
  const followed = followSource(model, options);
  if (followed.dtype !== undefined && !isQuantisedName(followed.dtype)) return followed;
  // A float dtype must be given for quantised experts, or it follows them.
  const dtype = narrowDtype(model.layers) === undefined ? undefined : dtypeName(decodedDtype({}));
  return { ...followed, dtype: dtype as DtypeName | undefined, basesDtype: undefined, scaleGroup: undefined };
}

/** The default dtype for experts that are all quantised; undefined for others. */
function narrowDtype(layers: MoeModel['layers']): QuantisedName | undefined {
  let bytes = 0;
  let weights = 0;
  for (const { experts } of layers)
    for (const matrix of PROJECTIONS.flatMap((it) => experts[it])) {
      if (floatDtypeOf(matrix.encoding) !== undefined) return undefined;
      bytes += matrixBytes(matrix);
      weights += matrix.rows * matrix.cols;
    }
  if (weights === 0) return undefined;
  return (8 * bytes) / weights < BITS_OF_INT8 ? DEFAULTS.narrow : DEFAULTS.wide;
}
