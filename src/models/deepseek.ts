import type { Family } from './family.js';

/** DeepSeek-V2 and V3; the layer numbered `num_hidden_layers` is V3's multi-token-prediction module. */
export const deepseek: Family = {
  name: 'DeepSeek',
  modelTypes: ['deepseek_v2', 'deepseek_v3'],
  expertCountKey: 'n_routed_experts',
  rowsKey: 'moe_intermediate_size',
  nativeArchitecture: 'DeepseekV3MoBEForCausalLM',
};

/** Kimi-K2: DeepSeek-V3's layout under its own `model_type`. */
export const kimiK2: Family = {
  ...deepseek,
  name: 'Kimi-K2',
  modelTypes: ['kimi_k2'],
  nativeArchitecture: 'KimiK2MoBEForCausalLM',
};
