/** Finds the groups of a native checkpoint from the names and shapes of its tensors. */
import { isFloatDtype } from '../checkpoint/dtype.js';
import type { TensorInfo } from '../checkpoint/header.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { MissingExpertError, UnequalExpertError, UnknownModelError, UnsupportedDtypeError } from '../errors.js';
import type { Method, NativeFactors, NativePlace } from '../methods/method.js';
import { METHODS } from '../methods/registry.js';
import type { Projection } from '../models/family.js';
import type { GroupPlan } from './group-plan.js';
import { factorisedShape, turnedSize } from './orientation.js';

interface NativeMethod extends Method {
  readonly native: NativeFactors;
}

const nativeMethods = (): NativeMethod[] =>
  [...METHODS.values()].filter((method): method is NativeMethod => method.native !== undefined);

/** The method in whose native form a checkpoint is; undefined if it is not native. */
export function nativeMethod({ tensors }: Pick<Checkpoint, 'tensors'>): NativeMethod | undefined {
  const names = [...tensors.keys()];
  return nativeMethods().find(({ native }) => names.some((name) => native.marker.test(name)));
}

/** The facts about a group that the name of its marked tensor gives (`NativeFactors.marker`). */
interface Marked extends NativePlace {
  readonly marked: TensorInfo;
}

/**
 * Returns the groups of a native checkpoint. The data of their `experts` is the factor that includes σ. Throws
 * `UnknownModelError` if there are none, and `MissingExpertError`, `UnequalExpertError` or `UnsupportedDtypeError` if one is
 * damaged.
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
    const match = method.native.marker.exec(marked.name);
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
    return parts.map((part) => nativeGroup(checkpoint, method, { ...part, groups }));
  });
}

function incomplete(parts: ReadonlyArray<{ marked: TensorInfo; group: number }>, checkpoint: Checkpoint) {
  const held = new Set(parts.map(({ group }) => group));
  let missing = 0;
  while (held.has(missing)) missing++;
  const name = parts[0]?.marked.name ?? '';
  return new MissingExpertError(name.replace(/\d+$/, String(missing)), checkpoint.folder);
}

function nativeGroup(checkpoint: Checkpoint, method: NativeMethod, place: Marked): GroupPlan {
  const { layer, prefix, projection, marked, group, groups } = place;
  const problem = method.native.problem(place, marked, checkpoint);
  const { dtype } = marked;
  if (!isFloatDtype(dtype)) throw new UnsupportedDtypeError(marked.name, marked.file, dtype);
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
  return { layer, prefix, projection, group, groups, method, problem, experts, format, dtype, names };
}

function tensorOf({ tensors, folder }: Checkpoint, name: string): TensorInfo {
  const found = tensors.get(name);
  if (!found) throw new MissingExpertError(name, folder);
  return found;
}
