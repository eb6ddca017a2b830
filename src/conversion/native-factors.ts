/** The factors of a native checkpoint as stored matrices, and the dtypes that its config gives them. */

import { wordsOf } from '../checkpoint/encodings/bit-fields.js';
import {
  columnsOf,
  dtypeName,
  dtypeNamed,
  type FactorDtype,
  FLOAT_NAMES,
  factorEncoding,
  packedBits,
  QUANTISED_NAMES,
} from '../checkpoint/factor-dtype.js';
import type { TensorInfo } from '../checkpoint/header.js';
import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import {
  MissingExpertError,
  MissingScaleError,
  NativeConfigError,
  OptionError,
  UnequalExpertError,
} from '../errors.js';
import { fileIn } from '../location.js';
import { type NamedPart, partsOf, type StoredDtypes, type StoredFactor } from '../methods/factor-storage.js';
import type { Projection } from '../models/family.js';
import { languageConfig } from '../models/language-config.js';
import { factorsEntry } from '../models/native.js';
import type { GroupPlan } from './group-plan.js';

/** The name of the factor that a tensor holds, if the tensor is not its scales. */
export const factorName = (tensor: string): string => tensor.replace(/_packed$/, '');

/**
 * The dtypes of a projection's factors, if some are quantised. Throws a `NativeConfigError` if the config names a dtype that does
 * not exist.
 */
export function dtypesInConfig(
  { config, folder }: Pick<Checkpoint, 'config' | 'folder'>,
  place: { readonly layer: number; readonly projection: Projection },
): StoredDtypes | undefined {
  const entry = factorsEntry(config, place);
  if (entry?.dtype === undefined) return undefined;
  const { dtype, bases_dtype: shared = dtype, scale_group: group } = entry;
  const file = fileIn(folder, CONFIG_FILE);
  const known = (key: string, name: unknown, group: number): FactorDtype => {
    const found = dtypeNamed(name, group);
    if (!found)
      throw new NativeConfigError(
        file,
        `names the dtype ${JSON.stringify(name)} as "${key}" in mobe.factors; known are ${[...QUANTISED_NAMES, ...Object.keys(FLOAT_NAMES)].join(', ')}`,
      );
    return found;
  };
  if (!Number.isSafeInteger(group) || !((group as number) > 0))
    throw new NativeConfigError(
      file,
      `has "scale_group": ${JSON.stringify(group)} in mobe.factors, which must be the number of columns that share a scale`,
    );
  return { own: known('dtype', dtype, group as number), shared: known('bases_dtype', shared, group as number) };
}

/** The newest form of native checkpoints that this program reads. */
export const FORMAT_VERSION = 2;

/** Throws `NativeConfigError` if the config is of a newer form, or gives a projection other sizes than its tensors have. */
export function checkSizes(
  { config, folder }: Pick<Checkpoint, 'config' | 'folder'>,
  {
    method,
    problem,
    groups,
    layer,
    projection,
  }: Pick<GroupPlan, 'method' | 'problem' | 'groups' | 'layer' | 'projection'>,
): void {
  const file = fileIn(folder, CONFIG_FILE);
  const version = (config.mobe as Checkpoint['config'] | undefined)?.format_version ?? FORMAT_VERSION;
  if (!(typeof version === 'number' && version <= FORMAT_VERSION))
    throw new NativeConfigError(
      file,
      `has format_version ${JSON.stringify(version)}, and this version of mobe reads up to ${FORMAT_VERSION}: update mobe`,
    );
  const entry = factorsEntry(config, { layer, projection });
  for (const [key, size] of Object.entries(method.native?.sizes(problem, groups) ?? {}))
    if (entry && key in entry && entry[key] !== size)
      throw new NativeConfigError(
        file,
        `says "${key}": ${JSON.stringify(entry[key])} for ${projection} of layer ${layer} in mobe.factors, and the tensors have ${JSON.stringify(size)}`,
      );
}

/**
 * The number of columns of packed rows. Several numbers of columns can fill the same words: `hidden_size` is taken if it is one of
 * them, else the largest.
 */
export function packedColumns(words: number, bits: number, config: Checkpoint['config']): number {
  const { least, most } = columnsOf(words, bits);
  const { hidden_size: width } = languageConfig(config);
  return typeof width === 'number' && width >= least && width <= most ? width : most;
}

/** Whether a reader finds the number of columns of shared factors in a dtype. */
export function showColumns(dtype: FactorDtype, cols: number, config: Checkpoint['config']): boolean {
  const bits = packedBits(dtype);
  return bits === undefined || packedColumns(wordsOf(cols, bits), bits, config) === cols;
}

/** Throws `OptionError` if a reader could not tell the columns of packed shared factors. */
export function checkPacked(
  { stored, problem }: Pick<GroupPlan, 'stored' | 'problem'>,
  config: Checkpoint['config'],
): void {
  if (showColumns(stored.shared, problem.cols, config)) return;
  throw new OptionError(
    '--bases-dtype',
    `bases of ${problem.cols} columns do not fill whole words in ${dtypeName(stored.shared)}, so a reader would take them for wider ones. Use int8`,
  );
}

/** Tensors as a method reads them: a packed factor has its own name and shape. Floats are left as they are. */
export function logicalTensors(
  { tensors, config }: Pick<Checkpoint, 'tensors' | 'config'>,
  marked: TensorInfo,
  dtypes: StoredDtypes,
): { readonly tensors: Checkpoint['tensors']; readonly marked: TensorInfo } {
  const bits = packedBits(dtypes.shared);
  const unpacked = new Map(tensors);
  for (const tensor of tensors.values()) {
    const name = factorName(tensor.name);
    if (name !== tensor.name) unpacked.set(name, { ...tensor, name });
  }
  if (bits === undefined) return { tensors: unpacked, marked };
  const words = marked.shape.at(-1) ?? 0;
  const shape = [...marked.shape.slice(0, -1), packedColumns(words, bits, config)];
  return { tensors: unpacked, marked: { ...marked, name: factorName(marked.name), shape } };
}

/**
 * A factor of a checkpoint as a matrix, whose rows are all axes but the last. Throws `MissingExpertError`, `MissingScaleError` or
 * `UnequalExpertError` if a part is missing, or has another shape or dtype.
 * @param name the factor's name, without the suffix of a part
 */
export function storedFactorMatrix(
  { tensors, folder }: Pick<Checkpoint, 'tensors' | 'folder'>,
  name: string,
  factor: StoredFactor,
): StoredMatrix {
  const [data, scales] = partsOf([factor]).map((part, i, parts) => {
    const found = tensors.get(name + part.suffix);
    const whole = tensors.get(name + (parts[0] as NamedPart).suffix);
    if (!found && i > 0 && whole) throw new MissingScaleError(whole.name, whole.file, name + part.suffix);
    if (!found) throw new MissingExpertError(name + part.suffix, folder);
    if (String(found.shape) !== String(part.shape))
      throw new UnequalExpertError(found.name, found.file, `has shape [${found.shape}], expected [${part.shape}]`);
    if (found.dtype !== part.dtype)
      throw new NativeConfigError(
        fileIn(folder, CONFIG_FILE),
        `asks for ${part.dtype} in mobe.factors, and tensor "${found.name}" in ${found.file} is ${found.dtype}`,
      );
    return found;
  }) as [TensorInfo, TensorInfo?];
  const rows = factor.shape.slice(0, -1).reduce((a, b) => a * b, 1);
  const range = ({ file, start, end }: TensorInfo) => ({ file, start, end });
  return {
    name,
    rows,
    cols: factor.shape.at(-1) ?? 1,
    encoding: factorEncoding(factor.dtype),
    data: range(data),
    ...(scales && { scales: range(scales) }),
    place: { tensor: name, element: 0 },
  };
}
