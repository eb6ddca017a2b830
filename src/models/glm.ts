import { type Family, followsDenseLayers } from './family.js';

/**
 * GLM-4.5, GLM-4.5-Air. They start with dense layers, have shared experts, and a multi-token-prediction module after the last
 * layer.
 */
export const glm4Moe: Family = {
  name: 'GLM-4.5',
  modelTypes: ['glm4_moe'],
  expertCountKey: 'n_routed_experts',
  rowsKey: 'moe_intermediate_size',
  isMoeLayer: followsDenseLayers,
};
