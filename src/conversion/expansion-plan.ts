/** Plans the expansion of a native checkpoint to standard weights, from headers only. */
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { type ConversionPlan, planConversion } from './conversion-plan.js';
import type { GroupPlan } from './group-plan.js';
import { findNativeGroups } from './native-groups.js';
import { nativeLayers, placedGroups } from './native-layers.js';

/** Plans it in the layout of the checkpoint's own source. Throws an `InputError` if the checkpoint is not native, or damaged. */
export function planExpansion(source: Checkpoint, shardBytes: number): ConversionPlan {
  const found = findNativeGroups(source);
  const restored = nativeLayers(source, found);
  const groups = placedGroups(found, restored);
  const dropped = new Set(groups.flatMap(unscaledFactors));
  // Tensors that are quantised in a native checkpoint were kept so on purpose (`--keep-quantized`).
  return planConversion({ source, groups, restored, format: 'hf', shardBytes, dropped, keepQuantised: true });
}

/** The tensors of a group's factors that no weights replace: all but the factor that includes σ. */
const unscaledFactors = ({ method, names: { shared, experts } }: GroupPlan): string[] => [
  ...Object.values(shared),
  ...experts.flatMap(({ [method.scaled]: _, ...others }) => Object.values(others)),
];
