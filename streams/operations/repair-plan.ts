/** Plans what a repair of down_proj writes. */
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import { withDenseGroups } from '../../src/conversion/dense-groups.js';
import { compareGroups, formatRanges, type GroupPlan } from '../../src/conversion/group-plan.js';
import { OptionError } from '../../src/errors.js';
import { checkComputable } from '../../src/models/expert-form.js';
import type { ExpertLayer, MoeModel } from '../../src/models/family.js';
import type { LayerToRepair, ReportedGroup } from '../stages/repair-layer.js';

/**
 * Adds groups for the dense down_proj of all layers with factors. Throws `OptionError` if the output has factor files alone, in
 * which dense weights have no place, and `UnsupportedExpertsError` if this program cannot compute the experts.
 */
export function planDown(plain: ConversionPlan, model: MoeModel): ConversionPlan {
  checkComputable(plain.source);
  const dense = model.layers.filter(({ layer, experts }) => {
    const own = plain.groups.filter((group) => group.layer === layer);
    return own.length > 0 && experts.down_proj.length > 0 && !own.some(({ projection }) => projection === 'down_proj');
  });
  if (plain.format === 'factors' && dense.length)
    throw new OptionError(
      '--repair',
      `there are no factors of down_proj in layer ${formatRanges(dense.map(({ layer }) => layer))}, so factor files have no place for a repaired one. Use --repair factors, or repair a native checkpoint`,
    );
  return withDenseGroups(plain, dense, 'down_proj');
}

/** A layer with its finished factors. Groups are those of the plan. */
export function layerToRepair(
  source: ExpertLayer,
  finished: readonly ReportedGroup[],
  plan: Pick<ConversionPlan, 'groups'>,
  repairsDown: boolean,
): LayerToRepair {
  const own = plan.groups.filter(({ layer }) => layer === source.layer);
  const factored = finished
    .filter(({ group }) => group.layer === source.layer)
    .map((it) => ({ ...it, group: own.find((group) => compareGroups(group, it.group) === 0) as GroupPlan }));
  return { source, factored, repairsDown, down: own.find(({ dense }) => dense) };
}
