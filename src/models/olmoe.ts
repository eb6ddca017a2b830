import type { Family } from './family.js';

/** OLMoE-1B-7B: every layer, no shared experts. */
export const olmoe: Family = {
  name: 'OLMoE',
  modelTypes: ['olmoe'],
  expertCountKey: 'num_experts',
  rowsKey: 'intermediate_size',
  isMoeLayer: () => true,
};
