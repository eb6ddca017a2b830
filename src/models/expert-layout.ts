/**
 * The layout of a layer's experts in a checkpoint of plain floats, as JSON. A result with standard weights has its source's
 * layout. A native checkpoint keeps the description, so that it can be expanded to that layout again.
 */
import { z } from 'zod';
import type { TensorInfo } from '../checkpoint/header.js';
import type { MatrixPlace, StoredMatrix } from '../checkpoint/stored-matrix.js';
import { type ExpertLayer, PROJECTIONS, type Projection } from './family.js';
import { type Division, placeOfPart } from './matrix-part.js';

const expertTensor = z.strictObject({
  /**
   * The name after the layer's prefix. `{e}` is the number of the expert: `experts.{e}.w1.weight`. A name without it is of one
   * tensor with all experts, `experts.gate_up_proj`, whose first axis is the expert.
   */
  name: z.string(),
  /** The projections that each expert's matrix holds, in order. Their outputs follow each other, unless `interleaved`. */
  projections: z.array(z.enum(PROJECTIONS)).min(1).readonly(),
  /** The outputs of the projections alternate, as in gpt-oss. */
  interleaved: z.boolean(),
  /** An expert's matrix is (inputs, outputs) instead of (outputs, inputs). */
  transposed: z.boolean(),
  /** The first axis is not the expert but all rows of all experts, as in DBRX. */
  flat: z.boolean(),
});

/** A tensor with expert weights, or one such tensor for each expert. */
export type ExpertTensor = Readonly<z.infer<typeof expertTensor>>;

/** Checks a layout that comes from a config. */
export const expertLayout = z.array(expertTensor).readonly();

/** The tensors of a layer's experts. Each projection of the layer is in one of them. */
export type ExpertLayout = z.infer<typeof expertLayout>;

const EXPERT = '{e}';

/**
 * The layout of a layer in its source. A quantised source has the layout of its decoded form.
 * @param source the checkpoint's tensors
 */
export function layoutOf(
  { prefix, experts }: ExpertLayer,
  source: ReadonlyMap<string, Pick<TensorInfo, 'shape'>>,
): ExpertLayout {
  const tensors = new Map<string, Array<readonly [Projection, StoredMatrix]>>();
  for (const projection of PROJECTIONS) {
    const [matrix] = experts[projection] ?? [];
    if (!matrix) continue;
    const name = matrix.place.tensor.slice(prefix.length).replace(/^experts\.0\./, `experts.${EXPERT}.`);
    tensors.set(name, [...(tensors.get(name) ?? []), [projection, matrix]]);
  }
  return [...tensors].map(([name, held]) => {
    held.sort(([, a], [, b]) => a.place.element - b.place.element);
    const [, { place, cols }] = held[0] as (typeof held)[number];
    const { row, column } = place.steps ?? { row: cols, column: 1 };
    const transposed = column !== 1;
    return {
      name,
      projections: held.map(([projection]) => projection),
      interleaved: row !== (transposed ? 1 : cols),
      transposed,
      flat: !name.includes(EXPERT) && source.get(place.tensor)?.shape.length === 2,
    };
  });
}

/**
 * The shape of one of the layout's tensors, of plain floats.
 * @param experts their number
 * @param size of one projection of one expert: outputs × inputs
 */
export function shapeIn(
  { name, projections, transposed, flat }: ExpertTensor,
  experts: number,
  { rows, cols }: Pick<StoredMatrix, 'rows' | 'cols'>,
): number[] {
  const outputs = projections.length * rows;
  const [height, width] = transposed ? [cols, outputs] : [outputs, cols];
  if (name.includes(EXPERT)) return [height, width];
  return flat ? [experts * height, width] : [experts, height, width];
}

/**
 * The place that a layout gives to an expert's matrix.
 * @param prefix the layer's prefix in the names of tensors
 * @param size of the matrix: outputs × inputs
 */
export function placeIn(
  layout: ExpertLayout,
  prefix: string,
  projection: Projection,
  expert: number,
  size: Pick<StoredMatrix, 'rows' | 'cols'>,
): MatrixPlace | undefined {
  const tensor = layout.find(({ projections }) => projections.includes(projection));
  if (!tensor) return undefined;
  const { name, projections } = tensor;
  const division = divisionOf(tensor);
  const start = name.includes(EXPERT) ? 0 : expert * division.count * size.rows * size.cols;
  const part = projections.indexOf(projection);
  return placeOfPart(`${prefix}${name.replace(EXPERT, String(expert))}`, start, division, part, size);
}

/** How one of the layout's tensors holds the projections of an expert. */
export const divisionOf = ({ projections, interleaved, transposed }: ExpertTensor): Division => ({
  count: projections.length,
  interleaved,
  transposed,
});
