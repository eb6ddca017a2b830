/** What a conversion changes in the source's `config.json`. */
import { QUANTISATION_KEYS, quantisationConfig } from '../checkpoint/quantisation.js';
import { UnevenFactorsError } from '../errors.js';
import type { MoeModel, Projection } from '../models/family.js';
import { type ModellingFile, modellingFiles } from '../models/modelling-files.js';
import type { ConfigChanges } from '../models/native.js';
import type { ConversionPlan } from './conversion-plan.js';
import { compareGroups, type GroupPlan, groupLabel } from './group-plan.js';
import { isNative } from './settings.js';

/** Of a dense model's conversion. */
export function configChanges(
  plan: ConversionPlan,
  model: MoeModel,
  { solver, sourceFingerprint }: { solver: string; sourceFingerprint: string },
): ConfigChanges {
  return {
    ...quantisationChanges(plan, model),
    ...(holdsFactors(plan) && nativeChanges(plan, model, solver, sourceFingerprint)),
  };
}

/** The modelling files that a native output carries; none for standard weights. */
export const nativeModelling = (plan: ConversionPlan, { family }: MoeModel): { add: ModellingFile[] } => ({
  add: holdsFactors(plan) && family.native ? modellingFiles(family.native) : [],
});

const holdsFactors = (plan: ConversionPlan): boolean => isNative(plan) && plan.groups.length > 0;

function nativeChanges(
  { source, groups }: ConversionPlan,
  { family }: MoeModel,
  solver: string,
  sourceFingerprint: string,
): ConfigChanges {
  const sorted = [...groups].sort(compareGroups);
  const [first] = sorted as [GroupPlan];
  const { method, problem, groups: parts } = first;
  const layers = [...new Set(sorted.map(({ layer }) => layer))];
  const projections = [...new Set(sorted.map(({ projection }) => projection))];
  checkUniform(sorted, layers, projections);
  if (!family.native || !method.native) return {}; // refused before (planGroups)
  const alike = { problem, groups: parts, layers, projections, solver, sourceFingerprint };
  return method.native.config(source.config, family.native, alike);
}

/** A native config has one list of projections for all layers, and one size of factors and number of groups for all of these. */
function checkUniform(
  groups: readonly GroupPlan[],
  layers: readonly number[],
  projections: readonly Projection[],
): void {
  const [first] = groups as [GroupPlan];
  const held = new Set(groups.map(groupLabel));
  const sizes = ({ problem: { experts, rows, cols, ...own }, groups: parts }: GroupPlan): string =>
    JSON.stringify([own, parts]);
  for (const group of groups) {
    if (sizes(group) === sizes(first)) continue;
    const holds = ({ method, problem, groups: parts }: GroupPlan): string =>
      `${method.describe(problem)} in ${parts} group(s)`;
    throw new UnevenFactorsError(`${groupLabel(group)} has ${holds(group)}, ${groupLabel(first)} ${holds(first)}`);
  }
  for (const layer of layers) {
    for (const projection of projections) {
      for (let group = 0; group < first.groups; group++) {
        const label = groupLabel({ layer, projection, group, groups: first.groups });
        if (!held.has(label)) throw new UnevenFactorsError(`${label} is missing`);
      }
    }
  }
}

/**
 * When nothing is quantised any more, the entry goes. Else the experts that were decoded are named in it, under the key that the
 * loaders of its kind read: `ignore` of compressed-tensors, `modules_to_not_convert` of the others.
 */
function quantisationChanges({ source, groups, quantised }: ConversionPlan, { layers }: MoeModel): ConfigChanges {
  const entry = quantisationConfig(source.config) as Record<string, unknown> | undefined;
  // Of no tensor that is known to be quantised, it speaks of others (GPTQ's attention, say), which pass through.
  if (!entry || quantised.before === 0) return {};
  const path = QUANTISATION_KEYS.find((key) => valueAt(source.config, key) === entry) as string;
  if (quantised.after === 0) return { [path]: undefined };
  const converted = new Set(groups.map(({ layer }) => layer));
  const modules = layers.filter(({ layer }) => converted.has(layer)).map(({ prefix }) => `${prefix}experts`);
  if (modules.length === 0) return {};
  const [key, added] = entry.config_groups
    ? ['ignore', modules.map((module) => `re:${module.replaceAll('.', '\\.')}\\..*`)]
    : ['modules_to_not_convert', modules];
  const listed = entry[key];
  return { [`${path}.${key}`]: [...(Array.isArray(listed) ? listed : []), ...added] };
}

const valueAt = (config: unknown, path: string): unknown =>
  path.split('.').reduce<unknown>((value, key) => (value as Record<string, unknown> | undefined)?.[key], config);
