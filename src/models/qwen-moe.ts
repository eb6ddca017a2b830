import { type Family, isSparseStep } from './family.js';

/** Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder. */
export const qwen3Moe: Family = {
  name: 'Qwen3-MoE',
  modelTypes: ['qwen3_moe'],
  expertCountKey: 'num_experts',
  rowsKey: 'moe_intermediate_size',
  isMoeLayer: isSparseStep,
};

/** Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B. They have a shared expert. */
export const qwen2Moe: Family = {
  name: 'Qwen2-MoE',
  modelTypes: ['qwen2_moe'],
  expertCountKey: 'num_experts',
  rowsKey: 'moe_intermediate_size',
  isMoeLayer: isSparseStep,
};
