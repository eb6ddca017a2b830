/** The changes that a conversion makes to the source's `config.json`. */
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
    // A plan of factors without a native form was refused before.
    ...(native && holdsFactors(plan) && nativeConfig(plan, model, native, origin)),
  };
}

/** The modelling files that a native output includes. Standard weights need none. */
export const nativeModelling = (plan: ConversionPlan, { family }: MoeModel): { add: ModellingFile[] } => ({
  add: holdsFactors(plan) && family.native ? modellingFiles(family.native) : [],
});

const holdsFactors = (plan: ConversionPlan): boolean => isNative(plan) && plan.groups.length > 0;
