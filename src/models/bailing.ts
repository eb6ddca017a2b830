import type { Family } from './family.js';

/** Ling and Ring ("Bailing"). */
export const bailing: Family = {
  name: 'Ling',
  modelTypes: ['bailing_moe', 'bailing_moe_v2'],
  expertCountKey: 'num_experts',
  rowsKey: 'moe_intermediate_size',
  nativeArchitecture: 'BailingMoBEForCausalLM',
};
