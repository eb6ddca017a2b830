import type { Family } from './family.js';

/** OLMoE-1B-7B. Every layer has experts, and none are shared. */
export const olmoe: Family = {
  name: 'OLMoE',
  modelTypes: ['olmoe'],
  expertCountKey: 'num_experts',
  rowsKey: 'intermediate_size',
  isMoeLayer: () => true,
};
