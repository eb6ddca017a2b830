/** The places of a group's data in an output. */
import { floatBytes } from '../checkpoint/dtype.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { partsOf, storedFactors } from '../methods/factor-storage.js';
import { type ConversionPlan, type Copy, copyOf } from './conversion-plan.js';
import { factorTensorName } from './factor-files.js';
import { type GroupPlan, nativeTensors } from './group-plan.js';
import { packedTensors } from './packed-weights.js';
import { holdsWeights, isNative } from './settings.js';
import { type Slice, type SlicePart, sliceKey } from './slices.js';
import type { AlternatingRows, FormRange, SourceForm } from './source-form.js';

/** The name of an expert's weights, where its factors are named by their own names. */
export const WEIGHTS = 'weights';
/** The name of their scales, if they are written in a quantised form. */
export const SCALES = 'scales';

/** A range of bytes in a tensor of the output. */
export interface Place {
  /** The part of a factor that goes there (`NamedPart.key`), or `WEIGHTS` or `SCALES`. */
  readonly factor: string;
  readonly tensor: string;
  readonly offset: number;
  readonly bytes: number;
  /** Set if the weights do not fill the range alone, or not row by row: their place in a slice, which is the range. */
  readonly part?: SlicePart | RowsPart;
}

/** A matrix whose rows alternate with those of other matrices, in a form of the source. */
export interface RowsPart {
  readonly matrix: StoredMatrix;
  /** The names of all matrices that may have rows there. */
  readonly slice: Slice;
  readonly range: FormRange;
  readonly rows: AlternatingRows;
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
  if (group.dense || holdsWeights(form)) return { shared: [], experts: weightPlaces(group, form) };
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
export function weightPlaces(group: GroupPlan, { separate }: Pick<Form, 'separate'>): Array<readonly Place[]> {
  const { experts, slices, dtype, dense, forms, coded } = group;
  const size = floatBytes(dtype);
  return experts.map((matrix, expert) => {
    if (coded) {
      const { data, scales } = packedTensors(matrix, coded);
      return [
        { factor: WEIGHTS, tensor: data.name, offset: 0, bytes: data.bytes },
        { factor: SCALES, tensor: scales.name, offset: 0, bytes: scales.bytes },
      ];
    }
    const form = forms?.[expert];
    if (form) return formPlaces(form, matrix, slices?.[expert]);
    const { name, rows, cols, place } = matrix;
    const bytes = rows * cols * size;
    if (separate && !dense) return [{ factor: WEIGHTS, tensor: name, offset: 0, bytes }];
    const slice = slices?.[expert];
    if (!slice) return [{ factor: WEIGHTS, tensor: place.tensor, offset: place.element * size, bytes }];
    const range = { tensor: slice.tensor, offset: slice.element * size, bytes: slice.size * size };
    return [{ factor: WEIGHTS, ...range, part: { slice, matrix } }];
  });
}

function formPlaces({ data, scales }: SourceForm, matrix: StoredMatrix, slice: Slice | undefined): Place[] {
  const place = (factor: string, range: FormRange): Place => {
    const { tensor, offset, bytes, rows } = range;
    return {
      ...{ factor, tensor, offset, bytes },
      ...(rows && slice && { part: { matrix, slice, range, rows } }),
    };
  };
  return [place(WEIGHTS, data), ...(scales ? [place(SCALES, scales)] : [])];
}

/** The copies that write a group's dense weights to the places of rebuilt ones, except to slices. */
export const keptCopies = (group: GroupPlan, form: Pick<Form, 'separate'>): Copy[] =>
  weightPlaces(group, form).flatMap((places, expert) =>
    places.flatMap(({ factor, tensor, offset, part }) => {
      if (part) return [];
      const own = group.forms?.[expert];
      if (!own) return copyOf(group.experts[expert] as StoredMatrix, tensor, offset, group.dtype);
      const { source } = (factor === WEIGHTS ? own.data : own.scales) as FormRange;
      return { target: tensor, offset, source };
    }),
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
