import { type Family, followsDenseLayers } from './family.js';

/** Both versions have shared experts. Version 2 starts with dense layers and ends with a multi-token-prediction module. */
const layout = {
  expertCountKey: 'num_experts',
  rowsKey: 'moe_intermediate_size',
  isMoeLayer: followsDenseLayers,
} as const;

/** Ling-Lite, Ling-Plus, Ring ("Bailing"): softmax routing. */
export const bailing: Family = { ...layout, name: 'Ling', modelTypes: ['bailing_moe'] };

/** Ling-mini-2.0, Ling-flash-2.0: sigmoid routing with a bias and groups. */
export const bailingV2: Family = {
  ...layout,
  name: 'Ling 2',
  modelTypes: ['bailing_moe_v2'],
};
