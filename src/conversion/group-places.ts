/** The places of a group's data in an output. */
import { floatBytes } from '../checkpoint/dtype.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { type ConversionPlan, type Copy, copyOf } from './conversion-plan.js';
import { factorTensorName } from './factor-files.js';
import { type GroupPlan, nativeTensors } from './group-plan.js';
import { holdsWeights, isNative } from './settings.js';

/** The name of an expert's weights, where its factors are named by their own names. */
export const WEIGHTS = 'weights';

/** A range of bytes in a tensor of the output. */
export interface Place {
  /** The factor that goes there, or `WEIGHTS`. */
  readonly factor: string;
  readonly tensor: string;
  readonly offset: number;
  readonly bytes: number;
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
  if (holdsWeights(form)) return { shared: [], experts: weightPlaces(group, form).map((place) => [place]) };
  const { shared, byExpert } = group.method.stores(group.problem);
  if (isNative(form)) {
    const tensors = nativeTensors(group);
    const places = (factors: typeof shared, specs: typeof tensors.shared): Place[] =>
      specs.map(({ name: tensor, bytes }, i) => ({ factor: factors[i]?.name ?? '', tensor, offset: 0, bytes }));
    return { shared: places(shared, tensors.shared), experts: tensors.experts.map((own) => places(byExpert, own)) };
  }
  const bytesOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, floatBytes(group.dtype));
  return {
    shared: shared.map(({ name, shape }) => ({
      factor: name,
      tensor: factorTensorName(group, name),
      offset: 0,
      bytes: bytesOf(shape),
    })),
    experts: group.experts.map((_, expert) =>
      byExpert.map(({ name, shape }) => {
        const bytes = bytesOf(shape);
        return { factor: name, tensor: factorTensorName(group, name), offset: expert * bytes, bytes };
      }),
    ),
  };
}

/** The places of a group's weights, in expert order. */
export function weightPlaces({ experts, dtype }: GroupPlan, { separate }: Pick<Form, 'separate'>): Place[] {
  const size = floatBytes(dtype);
  return experts.map(({ name, rows, cols, place }) => ({
    factor: WEIGHTS,
    tensor: separate ? name : place.tensor,
    offset: separate ? 0 : place.element * size,
    bytes: rows * cols * size,
  }));
}

/** The copies that write a group's dense weights to the places of its rebuilt weights, in the group's dtype. */
export const expertCopies = (group: GroupPlan, form: Pick<Form, 'separate'>): Copy[] =>
  weightPlaces(group, form).map(({ tensor, offset }, expert) =>
    copyOf(group.experts[expert] as StoredMatrix, tensor, offset, group.dtype),
  );
