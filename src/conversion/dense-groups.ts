/** Groups of dense weights that an output computes in place of copying them, among groups of factors. */
import { floatBytes, isFloatDtype } from '../checkpoint/dtype.js';
import type { TensorSpec } from '../checkpoint/header.js';
import { UnsupportedLayoutError } from '../errors.js';
import { DEFAULT_METHOD } from '../methods/registry.js';
import type { ExpertLayer, Projection } from '../models/family.js';
import type { ConversionPlan } from './conversion-plan.js';
import type { GroupPlan } from './group-plan.js';
import { factorisedShape, turnedSize } from './orientation.js';
import { slicesOf } from './slices.js';

/**
 * Replaces the copies of a dense projection by a group of each layer, whose weights the run computes. The output's tensors stay
 * the same. Throws `UnsupportedLayoutError` if one of its tensors holds other weights too.
 */
export function withDenseGroups(
  plan: ConversionPlan,
  layers: readonly ExpertLayer[],
  projection: Projection,
): ConversionPlan {
  const specs = new Map(plan.layout.shards.flatMap(({ tensors }) => tensors.map((it) => [it.name, it] as const)));
  const groups = layers.map((layer) => denseGroup(layer, projection, specs));
  const computed = new Set(groups.flatMap(({ experts }) => experts.map(({ place }) => place.tensor)));
  return {
    ...plan,
    groups: [...plan.groups, ...groups],
    copies: plan.copies.filter(({ target }) => !computed.has(target)),
  };
}

function denseGroup(
  { layer, prefix, experts: all }: ExpertLayer,
  projection: Projection,
  specs: ReadonlyMap<string, TensorSpec>,
): GroupPlan {
  const held = all[projection];
  const [first] = held as [(typeof held)[number]];
  // A native output splits a tensor that holds a factorised projection too.
  const split = !specs.has(first.place.tensor);
  const experts = split ? held.map((it) => ({ ...it, place: { tensor: it.name, element: 0 } })) : held;
  const tensors = new Map(experts.map(({ place: { tensor } }) => [tensor, specs.get(tensor) as TensorSpec]));
  const { dtype } = tensors.values().next().value as TensorSpec;
  const own = experts.reduce((sum, { rows, cols }) => sum + rows * cols, 0);
  const written = [...tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  if (!isFloatDtype(dtype) || own * floatBytes(dtype) !== written)
    throw new UnsupportedLayoutError(
      first.place.tensor,
      first.data.file,
      `the output keeps ${projection} there quantised, or together with other weights`,
    );
  return {
    ...{ layer, prefix, projection, group: 0, groups: 1, dense: true },
    method: DEFAULT_METHOD,
    problem: { experts: experts.length, ...turnedSize(projection, first) },
    experts,
    format: factorisedShape(projection, first),
    slices: split ? undefined : slicesOf(all, projection),
    dtype,
    stored: { own: dtype, shared: dtype },
    names: { shared: {}, experts: [] },
  };
}
