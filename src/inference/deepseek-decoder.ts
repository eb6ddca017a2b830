/** DeepSeek-V2 and V2-Lite; DeepSeek-V3 and R1; Kimi-K2, which has V3's architecture under another name. */
import { followsDenseLayers } from '../models/family.js';
import type { Architecture, Source } from './architecture.js';
import type { Attention } from './attention.js';
import { type Decoder, decoder } from './decoder.js';
import { latentAttention } from './latent-attention.js';
import { latentScale, readRotary } from './rotary.js';

type Version = Pick<Decoder, 'rule' | 'routerBias'>;

/** Scores by softmax. V2, but not V2-Lite, first selects groups by their best expert. */
const V2: Version = {
  rule: ({ config, expertsPerToken }) => ({
    expertsPerToken: expertsPerToken ?? config.number('num_experts_per_tok'),
    score: 'softmax',
    groups:
      config.text('topk_method', 'greedy') === 'group_limited_greedy'
        ? { count: config.number('n_group'), kept: config.number('topk_group'), top: 1 }
        : undefined,
    normalised: false,
    scale: config.number('routed_scaling_factor', 1),
  }),
};

/** Scores by sigmoid. Groups are first selected by the sum of their two best experts. */
const V3: Version = {
  routerBias: 'e_score_correction_bias',
  rule: ({ config, expertsPerToken }) => ({
    expertsPerToken: expertsPerToken ?? config.number('num_experts_per_tok'),
    score: 'sigmoid',
    groups: { count: config.number('n_group', 8), kept: config.number('topk_group', 4), top: 2 },
    normalised: config.flag('norm_topk_prob', true),
    scale: config.number('routed_scaling_factor', 2.5),
  }),
};

const architecture = (version: Version, ...modelTypes: string[]): Architecture =>
  decoder({
    ...version,
    modelTypes,
    isMoeLayer: followsDenseLayers,
    attention,
    sharedRows: (config) => config.number('n_shared_experts', 0) * config.number('moe_intermediate_size'),
  });

/** DeepSeek-V2 and V2-Lite. */
export const deepseekV2 = architecture(V2, 'deepseek_v2');
/** DeepSeek-V3, R1 and Kimi-K2. */
export const deepseekV3 = architecture(V3, 'deepseek_v3', 'kimi_k2');

function attention({ config, weight }: Source, prefix: string): Attention {
  const width = config.number('hidden_size');
  const heads = config.number('num_attention_heads');
  const rank = config.number('kv_lora_rank');
  const queryRank = config.number('q_lora_rank', 0);
  const plainSize = config.number('qk_nope_head_dim');
  const rotarySize = config.number('qk_rope_head_dim');
  const valueSize = config.number('v_head_dim');
  const queries = heads * (plainSize + rotarySize);
  const own = (name: string, ...shape: number[]) => weight(`${prefix}self_attn.${name}`, shape);
  const biased = config.flag('attention_bias', false);
  return latentAttention({
    weights: {
      norm: weight(`${prefix}input_layernorm.weight`, [width]),
      ...(queryRank
        ? {
            queryA: own('q_a_proj.weight', queryRank, width),
            queryNorm: own('q_a_layernorm.weight', queryRank),
            queryB: own('q_b_proj.weight', queries, queryRank),
            ...(biased && { queryABias: own('q_a_proj.bias', queryRank) }),
          }
        : { query: own('q_proj.weight', queries, width) }),
      latent: own('kv_a_proj_with_mqa.weight', rank + rotarySize, width),
      latentNorm: own('kv_a_layernorm.weight', rank),
      expand: own('kv_b_proj.weight', heads * (plainSize + valueSize), rank),
      output: own('o_proj.weight', width, heads * valueSize),
      ...(biased && {
        latentBias: own('kv_a_proj_with_mqa.bias', rank + rotarySize),
        outputBias: own('o_proj.bias', width),
      }),
    },
    heads,
    plainSize,
    rotarySize,
    valueSize,
    rank,
    scale: (plainSize + rotarySize) ** -0.5 * latentScale(config),
    epsilon: config.number('rms_norm_eps', 1e-6),
    layout: config.flag('rope_interleave', true) ? 'pairs' : 'halves',
    rotary: readRotary(config, rotarySize),
  });
}
