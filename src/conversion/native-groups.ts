/** Finds the groups of a native checkpoint from the names and shapes of its tensors. */
import { isFloatDtype } from '../checkpoint/dtype.js';
import type { TensorInfo } from '../checkpoint/header.js';
import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import {
  MissingExpertError,
  NativeConfigError,
  UnequalExpertError,
  UnknownModelError,
  UnsupportedDtypeError,
} from '../errors.js';
import { fileIn } from '../location.js';
import { hasCodes, partsOf, plainDtypes, type StoredDtypes, storedFactors } from '../methods/factor-storage.js';
import type { Method, NativeFactors, NativePlace } from '../methods/method.js';
import { METHODS } from '../methods/registry.js';
import type { Projection } from '../models/family.js';
import { type FactorTensor, type GroupPlan, nativeTensors } from './group-plan.js';
import { checkSizes, dtypesInConfig, factorName, logicalTensors, storedFactorMatrix } from './native-factors.js';
import { factorisedShape, turnedSize } from './orientation.js';

interface NativeMethod extends Method {
  readonly native: NativeFactors;
}

const nativeMethods = (): NativeMethod[] =>
  [...METHODS.values()].filter((method): method is NativeMethod => method.native !== undefined);

/** The method in whose native form a checkpoint is; undefined if it is not native. */
export function nativeMethod({ tensors }: Pick<Checkpoint, 'tensors'>): NativeMethod | undefined {
  const names = [...tensors.keys()];
  return nativeMethods().find(({ native }) => names.some((name) => native.marker.test(factorName(name))));
}

/** The facts about a group that the name of its marked tensor gives (`NativeFactors.marker`). */
interface Marked extends NativePlace {
  readonly marked: TensorInfo;
}

/**
 * Returns the groups of a native checkpoint. The data of their `experts` is the factor that includes σ. Throws
 * `UnknownModelError` if there are none, `NativeConfigError` if the config does not describe them, and `MissingExpertError`,
 * `UnequalExpertError` or `UnsupportedDtypeError` if one is damaged.
 */
export function findNativeGroups(checkpoint: Checkpoint): GroupPlan[] {
  const method = nativeMethod(checkpoint);
  if (!method) {
    const examples = nativeMethods().map(
      ({ native, title }) => `${native.example}: it is not a native ${title} checkpoint`,
    );
    throw new UnknownModelError(checkpoint.folder, `It has no tensors like ${examples.join('; nor like ')}.`);
  }
  const layers = new Map<string, Array<Omit<Marked, 'groups'> & { numbered: boolean }>>();
  for (const marked of checkpoint.tensors.values()) {
    const match = method.native.marker.exec(factorName(marked.name));
    if (!match) continue;
    const [, prefix, layer, short, number] = match as unknown as [string, string, string, string, string | undefined];
    const named = {
      prefix,
      layer: Number(layer),
      projection: `${short}_proj` as Projection,
      group: Number(number ?? 0),
      numbered: number !== undefined,
      marked,
    };
    const key = `${prefix}${short}`;
    const parts = layers.get(key);
    if (parts) parts.push(named);
    else layers.set(key, [named]);
  }
  return [...layers.values()].flatMap((parts) => {
    const last = parts.reduce((most, { group }) => Math.max(most, group), 0);
    const groups = parts.some(({ numbered }) => numbered) ? 1 + last : 1;
    if (parts.length !== groups) throw incomplete(parts, checkpoint);
    return parts.map((part) => {
      const group = nativeGroup(checkpoint, method, { ...part, groups });
      checkSizes(checkpoint, group);
      return group;
    });
  });
}

function incomplete(parts: ReadonlyArray<{ marked: TensorInfo; group: number }>, checkpoint: Checkpoint) {
  const held = new Set(parts.map(({ group }) => group));
  let missing = 0;
  while (held.has(missing)) missing++;
  const name = factorName(parts[0]?.marked.name ?? '');
  return new MissingExpertError(name.replace(/\d+$/, String(missing)), checkpoint.folder);
}

function nativeGroup(checkpoint: Checkpoint, method: NativeMethod, place: Marked): GroupPlan {
  const dtypes = dtypesInConfig(checkpoint, place);
  if (dtypes) return quantisedGroup(checkpoint, method, place, dtypes);
  const { layer, prefix, projection, marked, group, groups } = place;
  const { dtype } = marked;
  if (!isFloatDtype(dtype) && isStoredDtype(dtype))
    throw new NativeConfigError(
      fileIn(checkpoint.folder, CONFIG_FILE),
      `has no dtype for ${projection} of layer ${layer} in mobe.factors, and "${marked.name}" in ${marked.file} is ${dtype}`,
    );
  if (!isFloatDtype(dtype)) throw new UnsupportedDtypeError(marked.name, marked.file, dtype);
  const problem = method.native.problem(place, marked, checkpoint);
  const names = method.native.names(place, problem.experts);
  const { byExpert } = method.stores(problem);
  // The size of the dense weights, because these replace the factors in an expansion.
  const size = turnedSize(projection, problem);
  const encoding = { kind: 'float', dtype } as const;
  const experts = names.experts.map((own): StoredMatrix => {
    for (const factor of byExpert) {
      const name = own[factor.name] as string;
      const { file, shape, dtype: held } = tensorOf(checkpoint, name);
      if (String(shape) !== String(factor.shape))
        throw new UnequalExpertError(name, file, `has shape [${shape}], expected [${factor.shape}]`);
      if (held !== dtype) throw new UnequalExpertError(name, file, `is ${held}, ${marked.name} is ${dtype}`);
    }
    const { name, file, start, end } = tensorOf(checkpoint, own[method.scaled] as string);
    return { name, ...size, encoding, data: { file, start, end }, place: { tensor: name, element: 0 } };
  });
  const format = factorisedShape(projection, size);
  const stored = plainDtypes(dtype);
  return { layer, prefix, projection, group, groups, method, problem, experts, format, dtype, stored, names };
}

/** Whether quantised factors are stored in a dtype. */
const isStoredDtype = (dtype: string): boolean => ['I8', 'I32', 'F8_E4M3'].includes(dtype);

/** A group with quantised factors. Their dtypes are those of the config; all their parts are checked here. */
function quantisedGroup(checkpoint: Checkpoint, method: NativeMethod, place: Marked, stored: StoredDtypes): GroupPlan {
  const { layer, prefix, projection, marked, group, groups } = place;
  const { config, folder } = checkpoint;
  const logical = logicalTensors(checkpoint, marked, stored);
  const problem = method.native.problem(place, logical.marked, { config, folder, tensors: logical.tensors });
  const names = method.native.names(place, problem.experts);
  const plain = method.stores(problem).shared.find(({ coded }) => !coded);
  const held = plain && tensorOf(checkpoint, names.shared[plain.name] as string);
  if (held && !isFloatDtype(held.dtype)) throw new UnsupportedDtypeError(held.name, held.file, held.dtype);
  const dtype = held && isFloatDtype(held.dtype) ? held.dtype : 'BF16';
  const { shared, byExpert } = storedFactors({ method, problem, dtype, stored });
  for (const factor of shared) storedFactorMatrix(checkpoint, names.shared[factor.name] as string, factor);
  const size = turnedSize(projection, problem);
  const experts = names.experts.map((own): StoredMatrix => {
    const factors = byExpert.map((factor) => [
      factor.name,
      storedFactorMatrix(checkpoint, own[factor.name] as string, factor),
    ]);
    return { ...(Object.fromEntries(factors)[method.scaled] as StoredMatrix), ...size };
  });
  const format = factorisedShape(projection, size);
  return { layer, prefix, projection, group, groups, method, problem, experts, format, dtype, stored, names };
}

/**
 * The quantised factors of a checkpoint, by the names of their tensors: scales have none, since they are read with the numbers that
 * they belong to. Empty if no factor is quantised.
 */
export function quantisedFactors(checkpoint: Checkpoint): Map<string, readonly StoredMatrix[]> {
  const found = new Map<string, readonly StoredMatrix[]>();
  if (!nativeMethod(checkpoint)) return found;
  for (const group of findNativeGroups(checkpoint).filter(({ stored }) => hasCodes(stored))) {
    const { shared, byExpert } = storedFactors(group);
    const all = [
      ...shared.map((factor) => [group.names.shared[factor.name] as string, factor] as const),
      ...group.names.experts.flatMap((own) => byExpert.map((factor) => [own[factor.name] as string, factor] as const)),
    ];
    for (const [name, factor] of all)
      for (const { suffix, parameters } of partsOf([factor]))
        found.set(name + suffix, parameters ? [storedFactorMatrix(checkpoint, name, factor)] : []);
  }
  return found;
}

/** The tensors that hold factors of groups, by name. */
export const factorTensorsOf = (groups: readonly GroupPlan[]): Map<string, FactorTensor> =>
  new Map(
    groups.flatMap((group) => {
      const { shared, experts } = nativeTensors(group);
      return [...shared, ...experts.flat()].map((tensor) => [tensor.name, tensor] as const);
    }),
  );

function tensorOf({ tensors, folder }: Checkpoint, name: string): TensorInfo {
  const found = tensors.get(name);
  if (!found) throw new MissingExpertError(name, folder);
  return found;
}
