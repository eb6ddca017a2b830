/** Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder. */
import { UnsupportedModelError } from '../errors.js';
import { isSparseStep } from '../models/family.js';
import type { Source } from './architecture.js';
import type { Attention } from './attention.js';
import { decoder } from './decoder.js';
import { groupedAttention } from './grouped-attention.js';
import { readRotary } from './rotary.js';

/** Qwen3-MoE. */
export const qwen3Moe = decoder({
  modelTypes: ['qwen3_moe'],
  isMoeLayer: isSparseStep,
  attention,
  rule: ({ config, expertsPerToken }) => ({
    expertsPerToken: expertsPerToken ?? config.number('num_experts_per_tok'),
    score: 'softmax',
    normalised: config.flag('norm_topk_prob', false),
    scale: 1,
  }),
});

/** Queries and keys are normalised, each head by itself, before they are rotated. */
function attention({ config, weight }: Source, prefix: string): Attention {
  if (config.flag('use_sliding_window', false))
    throw new UnsupportedModelError(config.file, 'its attention has a sliding window');
  const width = config.number('hidden_size');
  const heads = config.number('num_attention_heads');
  const keyHeads = config.number('num_key_value_heads', heads);
  const headSize = config.number('head_dim', width / heads);
  const [all, keys] = [heads * headSize, keyHeads * headSize];
  const own = (name: string, ...shape: number[]) => weight(`${prefix}self_attn.${name}`, shape);
  return groupedAttention({
    weights: {
      norm: weight(`${prefix}input_layernorm.weight`, [width]),
      query: own('q_proj.weight', all, width),
      key: own('k_proj.weight', keys, width),
      value: own('v_proj.weight', keys, width),
      output: own('o_proj.weight', width, all),
      queryNorm: own('q_norm.weight', headSize),
      keyNorm: own('k_norm.weight', headSize),
      ...(config.flag('attention_bias', false) && {
        queryBias: own('q_proj.bias', all),
        keyBias: own('k_proj.bias', keys),
        valueBias: own('v_proj.bias', keys),
        outputBias: own('o_proj.bias', width),
      }),
    },
    heads,
    keyHeads,
    headSize,
    epsilon: config.number('rms_norm_eps', 1e-6),
    rotary: readRotary(config, headSize),
  });
}
