/** The places of a group's data in an output. */
import { floatBytes } from '../checkpoint/dtype.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { partsOf, storedFactors } from '../methods/factor-storage.js';
import { type ConversionPlan, type Copy, copyOf } from './conversion-plan.js';
import { factorTensorName } from './factor-files.js';
import { type GroupPlan, nativeTensors } from './group-plan.js';
import { holdsWeights, isNative } from './settings.js';
import { type SlicePart, sliceKey } from './slices.js';

/** The name of an expert's weights, where its factors are named by their own names. */
export const WEIGHTS = 'weights';

/** A range of bytes in a tensor of the output. */
export interface Place {
  /** The part of a factor that goes there (`NamedPart.key`), or `WEIGHTS`. */
  readonly factor: string;
  readonly tensor: string;
  readonly offset: number;
  readonly bytes: number;
  /** Set if the weights do not fill the range alone, or not row by row: their place in a slice, which is the range. */
  readonly part?: SlicePart;
}

/** The places of all data of a group. */
export interface GroupPlaces {
  /** The places of the shared factors. */
  readonly shared: readonly Place[];
  /** The places of each expert's factors or weights, in expert order. */
  readonly experts: ReadonlyArray<readonly Place[]>;
}

type Form = Pick<ConversionPlan, 'format' | 'separate'>;

/** Finds the places of a group's data in an output of this format. */
export function groupPlaces(group: GroupPlan, form: Form): GroupPlaces {
  if (group.dense || holdsWeights(form))
    return { shared: [], experts: weightPlaces(group, form).map((place) => [place]) };
  if (isNative(form)) {
    const { shared, experts } = nativeTensors(group);
    const places = (tensors: typeof shared): Place[] =>
      tensors.map(({ name: tensor, bytes, part }) => ({ factor: part.key, tensor, offset: 0, bytes }));
    return { shared: places(shared), experts: experts.map(places) };
  }
  const { shared, byExpert } = storedFactors(group);
  const places = (factors: typeof shared, number: number): Place[] =>
    partsOf(factors).map(({ key, bytes }) => ({
      factor: key,
      tensor: factorTensorName(group, key),
      offset: number * bytes,
      bytes,
    }));
  return { shared: places(shared, 0), experts: group.experts.map((_, expert) => places(byExpert, expert)) };
}

/** The places of a group's weights, in expert order. */
export function weightPlaces(
  { experts, slices, dtype, dense }: GroupPlan,
  { separate }: Pick<Form, 'separate'>,
): Place[] {
  const size = floatBytes(dtype);
  return experts.map((matrix, expert) => {
    const { name, rows, cols, place } = matrix;
    const bytes = rows * cols * size;
    if (separate && !dense) return { factor: WEIGHTS, tensor: name, offset: 0, bytes };
    const slice = slices?.[expert];
    if (!slice) return { factor: WEIGHTS, tensor: place.tensor, offset: place.element * size, bytes };
    const range = { tensor: slice.tensor, offset: slice.element * size, bytes: slice.size * size };
    return { factor: WEIGHTS, ...range, part: { slice, matrix } };
  });
}

/** The copies that write a group's dense weights to the places of rebuilt ones, except to slices. */
export const keptCopies = (group: GroupPlan, form: Pick<Form, 'separate'>): Copy[] =>
  weightPlaces(group, form).flatMap(({ tensor, offset, part }, expert) =>
    part ? [] : copyOf(group.experts[expert] as StoredMatrix, tensor, offset, group.dtype),
  );

/**
 * The groups of an output in units that are written together: groups with weights in the same slices are one unit. Units and
 * the groups of each are in the order of `groups`.
 */
export function groupUnits<G extends GroupPlan>(groups: readonly G[], form: Form): G[][] {
  const units = new Map<G, G[]>();
  const holders = new Map<string, G>();
  for (const group of groups) {
    units.set(group, [group]);
    if (!group.dense && (!holdsWeights(form) || form.separate)) continue;
    for (const slice of group.slices ?? []) {
      const other = holders.get(sliceKey(slice));
      if (!other) holders.set(sliceKey(slice), group);
      else if (units.get(other) !== units.get(group)) {
        const joined = units.get(other) as G[];
        for (const it of units.get(group) as G[]) {
          joined.push(it);
          units.set(it, joined);
        }
      }
    }
  }
  return [...new Set(units.values())];
}
