/** Plans the expansion of a native checkpoint to standard weights, from headers only. */
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { type ConversionPlan, planConversion } from './conversion-plan.js';
import { type GroupPlan, nativeTensors } from './group-plan.js';
import { factorTensorsOf, findNativeGroups } from './native-groups.js';
import { nativeLayers, placedGroups } from './native-layers.js';

/** Plans it in the layout of the checkpoint's own source. Throws an `InputError` if the checkpoint is not native, or damaged. */
export function planExpansion(source: Checkpoint, shardBytes: number): ConversionPlan {
  const found = findNativeGroups(source);
  const restored = nativeLayers(source, found);
  const groups = placedGroups(found, restored);
  const factors = factorTensorsOf(groups);
  const scaled = new Set(groups.flatMap(scaledData));
  const dropped = new Set([...factors.keys()].filter((name) => !scaled.has(name)));
  // Tensors that are quantised in a native checkpoint were kept so on purpose (`--keep-quantized`).
  return planConversion({ source, groups, restored, format: 'hf', shardBytes, dropped, factors, keepQuantised: true });
}

/** The tensors that weights replace: the numbers of the factor that includes σ, without their scales. */
const scaledData = (group: GroupPlan): string[] =>
  nativeTensors(group).experts.flatMap((parts) =>
    parts.filter(({ part }) => part.factor === group.method.scaled && part.parameters > 0).map(({ name }) => name),
  );
