import type { Family } from './family.js';

/** Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder. */
export const qwen3Moe: Family = {
  name: 'Qwen3-MoE',
  modelTypes: ['qwen3_moe'],
  expertCountKey: 'num_experts',
  rowsKey: 'moe_intermediate_size',
  nativeArchitecture: 'Qwen3MoBEForCausalLM',
};
