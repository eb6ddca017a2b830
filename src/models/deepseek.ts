import { type Family, followsDenseLayers } from './family.js';

/**
 * These models start with dense layers and have shared experts. In V3, layer `num_hidden_layers` is the multi-token-prediction
 * module.
 */
const layout = {
  expertCountKey: 'n_routed_experts',
  rowsKey: 'moe_intermediate_size',
  isMoeLayer: followsDenseLayers,
} as const;

/** DeepSeek-V2, V2-Lite, Coder-V2. */
export const deepseekV2: Family = {
  ...layout,
  name: 'DeepSeek-V2',
  modelTypes: ['deepseek_v2'],
};

/** DeepSeek-V3, R1. Weights are FP8 in 128 × 128 blocks. */
export const deepseekV3: Family = {
  ...layout,
  name: 'DeepSeek-V3',
  modelTypes: ['deepseek_v3'],
};

/** Kimi-K2 has the layout of DeepSeek-V3 and its own `model_type`. The routed experts of K2-Thinking are INT4. */
export const kimiK2: Family = {
  ...layout,
  name: 'Kimi-K2',
  modelTypes: ['kimi_k2'],
};
