import { type Family, followsDenseLayers } from './family.js';

/** Ling and Ring ("Bailing"): shared experts; the second version begins with dense layers. */
export const bailing: Family = {
  name: 'Ling',
  modelTypes: ['bailing_moe', 'bailing_moe_v2'],
  expertCountKey: 'num_experts',
  rowsKey: 'moe_intermediate_size',
  isMoeLayer: followsDenseLayers,
  native: {
    architecture: 'BailingMoBEForCausalLM',
    configClass: 'BailingMoBEConfig',
    module: 'modeling_bailing_mobe',
  },
};
