import { type Family, followsDenseLayers, type NativeForm } from './family.js';

/** Dense layers first, shared experts; the layer numbered `num_hidden_layers` is V3's multi-token-prediction module. */
const layout = {
  expertCountKey: 'n_routed_experts',
  rowsKey: 'moe_intermediate_size',
  isMoeLayer: followsDenseLayers,
} as const;

/** All three are in one module. */
const native = (name: string): NativeForm => ({
  architecture: `${name}ForCausalLM`,
  configClass: `${name}Config`,
  module: 'modeling_deepseek_mobe',
});

/** DeepSeek-V2, V2-Lite, Coder-V2. */
export const deepseekV2: Family = {
  ...layout,
  name: 'DeepSeek-V2',
  modelTypes: ['deepseek_v2'],
  native: native('DeepseekV2MoBE'),
};

/** DeepSeek-V3, R1: FP8 in 128 × 128 blocks. */
export const deepseekV3: Family = {
  ...layout,
  name: 'DeepSeek-V3',
  modelTypes: ['deepseek_v3'],
  native: native('DeepseekV3MoBE'),
};

/** Kimi-K2: DeepSeek-V3's layout under its own `model_type`; K2-Thinking's routed experts are INT4. */
export const kimiK2: Family = {
  ...layout,
  name: 'Kimi-K2',
  modelTypes: ['kimi_k2'],
  native: native('KimiK2MoBE'),
};
