/** Groups of dense weights that an output computes in place of copying them, among groups of factors. */
import { floatBytes, isFloatDtype } from '../checkpoint/dtype.js';
import type { TensorSpec } from '../checkpoint/header.js';
import { UnsupportedLayoutError } from '../errors.js';
import { plainDtypes } from '../methods/factor-storage.js';
import { DEFAULT_METHOD } from '../methods/registry.js';
import type { ExpertLayer, Projection } from '../models/family.js';
import type { ConversionPlan } from './conversion-plan.js';
import { weightPlaces } from './group-places.js';
import type { GroupPlan } from './group-plan.js';
import { factorisedShape, turnedSize } from './orientation.js';
import { decodedDtype } from './settings.js';
import { slicesOf } from './slices.js';
import { formFinder, formRanges, type SourceForm } from './source-form.js';

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
  const findForms = formFinder(plan.source);
  const groups = layers.map((layer) => denseGroup(layer, projection, specs, findForms));
  const computed = new Set(
    groups.flatMap((group) => weightPlaces(group, plan).flatMap((places) => places.map(({ tensor }) => tensor))),
  );
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
  findForms: ReturnType<typeof formFinder>,
): GroupPlan {
  const held = all[projection];
  const [first] = held as [(typeof held)[number]];
  const common = {
    ...{ layer, prefix, projection, group: 0, groups: 1, dense: true },
    method: DEFAULT_METHOD,
    problem: { experts: held.length, ...turnedSize(projection, first) },
    format: factorisedShape(projection, first),
    names: { shared: {}, experts: [] },
  };
  const forms = findForms(held);
  if (forms && staysQuantised(forms, specs)) {
    const dtype = decodedDtype({});
    return {
      ...common,
      experts: held,
      slices: slicesOf(all, projection),
      dtype,
      stored: plainDtypes(dtype),
      forms,
    };
  }
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
    ...common,
    experts,
    slices: split ? undefined : slicesOf(all, projection),
    dtype,
    stored: plainDtypes(dtype),
  };
}

/** Whether the output has the matrices quantised as the source has them, and nothing else in their tensors. */
function staysQuantised(forms: readonly SourceForm[], specs: ReadonlyMap<string, TensorSpec>): boolean {
  const ranges = formRanges([{ forms }]);
  const dtypes = forms.map(({ data }) => specs.get(data.tensor)?.dtype);
  return (
    dtypes.some((dtype) => dtype !== undefined && !isFloatDtype(dtype)) &&
    [...ranges].every(([tensor, own]) => own.reduce((sum, { bytes }) => sum + bytes, 0) === specs.get(tensor)?.bytes)
  );
}
