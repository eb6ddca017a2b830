/** What a conversion changes in the source's `config.json`. */
import { UnevenFactorsError } from '../errors.js';
import type { MoeModel, Projection } from '../models/family.js';
import { type ModellingFile, modellingFiles } from '../models/modelling-files.js';
import { type ConfigChanges, nativeConfig } from '../models/native.js';
import type { ConversionPlan } from './conversion-plan.js';
import { compareGroups, type GroupPlan, groupLabel } from './group-plan.js';
import { quantisationChanges } from './quantisation-changes.js';

/** Of a dense model's conversion. */
export function configChanges(
  plan: ConversionPlan,
  model: MoeModel,
  { solver, sourceFingerprint }: { solver: string; sourceFingerprint: string },
): ConfigChanges {
  return {
    ...quantisationChanges(plan, model),
    ...(isNative(plan) && nativeChanges(plan, model, solver, sourceFingerprint)),
  };
}

/** The modelling files that a native output carries; none for standard weights. */
export const nativeModelling = (plan: ConversionPlan, { family }: MoeModel): { add: ModellingFile[] } => ({
  add: isNative(plan) && family.native ? modellingFiles(family.native) : [],
});

const isNative = ({ format, groups }: ConversionPlan): boolean => format === 'mobe' && groups.length > 0;

function nativeChanges(
  { source, groups }: ConversionPlan,
  { family }: MoeModel,
  solver: string,
  sourceFingerprint: string,
): ConfigChanges {
  const sorted = [...groups].sort(compareGroups);
  const [first] = sorted as [GroupPlan];
  const layers = [...new Set(sorted.map(({ layer }) => layer))];
  const projections = [...new Set(sorted.map(({ projection }) => projection))];
  checkUniform(sorted, layers, projections);
  if (!family.native) return {}; // refused before (planGroups)
  const { bases, rank, activation } = first.problem;
  return nativeConfig(source.config, family.native, {
    bases: bases * first.groups,
    groups: first.groups,
    rank,
    activation,
    layers,
    projections,
    solver,
    sourceFingerprint,
  });
}

/** A native config has one m, r, f and number of groups for all, and one list of projections for all its layers. */
function checkUniform(
  groups: readonly GroupPlan[],
  layers: readonly number[],
  projections: readonly Projection[],
): void {
  const [first] = groups as [GroupPlan];
  const held = new Set(groups.map(groupLabel));
  for (const group of groups) {
    const { bases, rank, activation } = group.problem;
    const same =
      bases === first.problem.bases &&
      rank === first.problem.rank &&
      activation === first.problem.activation &&
      group.groups === first.groups;
    if (!same)
      throw new UnevenFactorsError(
        `${groupLabel(group)} has ${bases} bases of rank ${rank} in ${group.groups} group(s) with ${activation}, ${groupLabel(first)} ${first.problem.bases} of ${first.problem.rank} in ${first.groups} with ${first.problem.activation}`,
      );
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
