/** The changes that a conversion makes to the source's `config.json`. */
import { quantisationEntries } from '../checkpoint/quantisation-entries.js';
import type { MoeModel } from '../models/family.js';
import { type ModellingFile, modellingFiles } from '../models/modelling-files.js';
import type { ConfigChanges } from '../models/native.js';
import type { ConversionPlan } from './conversion-plan.js';
import { nativeConfig, type Origin } from './native-config.js';
import { quantisationChanges } from './quantisation-changes.js';
import { isNative } from './settings.js';

/**
 * The changes for the conversion of a dense model. Throws `UnevenFactorsError` if a native config cannot describe the groups,
 * for example because one is missing.
 */
export function configChanges(plan: ConversionPlan, model: MoeModel, origin: Origin): ConfigChanges {
  const { native } = model.family;
  return {
    ...quantisationChanges(plan, model),
    ...(holdsFactors(plan) && decodedAtLoading(plan)),
    // A plan of factors without a native form was refused before.
    ...(native && holdsFactors(plan) && nativeConfig(plan, model, native, origin)),
  };
}

/**
 * transformers keeps FP8 weights on a GPU for modules of its own alone, and the experts are none of these. So the entry of FP8 asks for
 * plain weights, as transformers makes them on a CPU.
 */
function decodedAtLoading({ source, quantised }: ConversionPlan): ConfigChanges {
  const entries = quantised.after ? quantisationEntries(source.config) : [];
  const fp8 = entries.filter(({ entry }) => entry.quant_method === 'fp8' && entry.dequantize === undefined);
  return Object.fromEntries(fp8.map(({ path }) => [`${path}.dequantize`, true]));
}

/** The modelling files that a native output includes. Standard weights need none. */
export const nativeModelling = (plan: ConversionPlan, { family }: MoeModel): { add: ModellingFile[] } => ({
  add: holdsFactors(plan) && family.native ? modellingFiles(family.native) : [],
});

const holdsFactors = (plan: ConversionPlan): boolean => isNative(plan) && plan.groups.length > 0;
