/** The changes that a conversion makes to the source's `config.json`. */
import { UnevenFactorsError } from '../errors.js';
import type { MoeModel, Projection } from '../models/family.js';
import { type ModellingFile, modellingFiles } from '../models/modelling-files.js';
import type { ConfigChanges } from '../models/native.js';
import type { ConversionPlan } from './conversion-plan.js';
import { compareGroups, type GroupPlan, groupLabel } from './group-plan.js';
import { quantisationChanges } from './quantisation-changes.js';
import { isNative } from './settings.js';

/**
 * The changes for the conversion of a dense model. Throws `UnevenFactorsError` if a native config cannot describe the groups
 * because their sizes differ or one is missing.
 */
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

/** The modelling files that a native output includes. Standard weights need none. */
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
  if (!family.native || !method.native) return {}; // planGroups has refused this
  const alike = { problem, groups: parts, layers, projections, solver, sourceFingerprint };
  return method.native.config(source.config, family.native, alike);
}

/**
 * Checks that all layers have the same projections, factor sizes and number of groups, because a native config has one value
 * for each.
 */
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
