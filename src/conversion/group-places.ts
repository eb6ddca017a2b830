/** Where the data of a group goes in an output. */
import { floatBytes } from '../checkpoint/dtype.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import type { ConversionPlan, Copy } from './conversion-plan.js';
import { copyOf } from './conversion-plan.js';
import { factorTensorName } from './factor-files.js';
import { type GroupPlan, nativeTensors } from './group-plan.js';

/** The name of an expert's rebuilt weights among what is written of it. */
export const WEIGHTS = 'weights';

/** A tensor of the output, and the byte of it at which something begins. */
export interface Place {
  /** The factor that goes there, or `WEIGHTS`. */
  readonly factor: string;
  readonly tensor: string;
  readonly offset: number;
  readonly bytes: number;
}

export interface GroupPlaces {
  /** Of the factors that the experts share. */
  readonly shared: readonly Place[];
  /** In expert order. */
  readonly experts: ReadonlyArray<readonly Place[]>;
}

type Form = Pick<ConversionPlan, 'format' | 'separate'>;

export function groupPlaces(group: GroupPlan, form: Form): GroupPlaces {
  if (form.format === 'hf') return { shared: [], experts: weightPlaces(group, form).map((place) => [place]) };
  const { shared, byExpert } = group.method.stores(group.problem);
  if (form.format === 'mobe') {
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

/** What writes a group's dense weights in the places of its rebuilt ones, in the same dtype. */
export const expertCopies = (group: GroupPlan, form: Pick<Form, 'separate'>): Copy[] =>
  weightPlaces(group, form).map(({ tensor, offset }, expert) =>
    copyOf(group.experts[expert] as StoredMatrix, tensor, offset, group.dtype),
  );
