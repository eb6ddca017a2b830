/** Ling and Ring ("Bailing"), versions 1 and 2. Values that a config lacks have the defaults of inclusionAI's code. */
import { followsDenseLayers } from '../models/family.js';
import type { Architecture, Source } from './architecture.js';
import type { Attention } from './attention.js';
import { decoder } from './decoder.js';
import { groupedAttention } from './grouped-attention.js';
import { readRotary } from './rotary.js';
import type { RouterRule } from './router.js';

interface Version {
  readonly epsilon: number;
  readonly theta: number;
  readonly sharedExperts: number;
  readonly queryKeyNorm: boolean;
  /** Whether the attention's output projection has a bias by default. */
  readonly outputBias: boolean;
  readonly routerBias?: string;
  rule(source: Source): Omit<RouterRule, 'expertsPerToken'>;
}

const V1: Version = {
  epsilon: 1e-5,
  theta: 10_000,
  sharedExperts: 0,
  queryKeyNorm: false,
  outputBias: true,
  rule: ({ config }) => ({ score: 'softmax', normalised: config.flag('norm_topk_prob', true), scale: 1 }),
};

const V2: Version = {
  epsilon: 1e-6,
  theta: 600_000,
  sharedExperts: 1,
  queryKeyNorm: true,
  outputBias: false,
  routerBias: 'expert_bias',
  rule: ({ config }) => ({
    score: 'sigmoid',
    groups: { count: config.number('n_group', 8), kept: config.number('topk_group', 4), top: 2 },
    normalised: true,
    scale: config.number('routed_scaling_factor', 1),
  }),
};

const architecture = (version: Version, modelType: string): Architecture =>
  decoder({
    modelTypes: [modelType],
    embedding: 'word_embeddings',
    epsilon: version.epsilon,
    headNormalised: (config) => config.flag('norm_head', false),
    isMoeLayer: followsDenseLayers,
    attention: (source, prefix) => attention(source, version, prefix),
    rule(source) {
      const rule = version.rule(source);
      const own = source.config.number('num_experts_per_tok');
      // A model with one expert per token does not normalise its weight.
      return { ...rule, normalised: rule.normalised && own > 1, expertsPerToken: source.expertsPerToken ?? own };
    },
    routerBias: version.routerBias,
    sharedRows: (config) =>
      config.number('num_shared_experts', version.sharedExperts) * config.number('moe_intermediate_size'),
  });

/** Ling 1. */
export const bailing = architecture(V1, 'bailing_moe');
/** Ling 2 and Ring 2. */
export const bailingV2 = architecture(V2, 'bailing_moe_v2');

/** One fused matrix makes queries, keys and values. A part of each head may have no rotary embedding. */
function attention({ config, weight }: Source, version: Version, prefix: string): Attention {
  const width = config.number('hidden_size');
  const heads = config.number('num_attention_heads');
  const keyHeads = config.number('num_key_value_heads', heads);
  const headSize = config.number('head_dim', 0) || width / heads;
  const rows = (heads + 2 * keyHeads) * headSize;
  const own = (name: string, ...shape: number[]) => weight(`${prefix}attention.${name}`, shape);
  const rotated =
    config.section('rope_parameters')?.number('partial_rotary_factor', 1) ?? config.number('partial_rotary_factor', 1);
  return groupedAttention({
    weights: {
      norm: weight(`${prefix}input_layernorm.weight`, [width]),
      fused: own('query_key_value.weight', rows, width),
      output: own('dense.weight', width, heads * headSize),
      ...(config.flag('use_qkv_bias', false) && { fusedBias: own('query_key_value.bias', rows) }),
      ...(config.flag('use_bias', version.outputBias) && { outputBias: own('dense.bias', width) }),
      ...(config.flag('use_qk_norm', version.queryKeyNorm) && {
        queryNorm: own('query_layernorm.weight', headSize),
        keyNorm: own('key_layernorm.weight', headSize),
      }),
    },
    heads,
    keyHeads,
    headSize,
    epsilon: config.number('rms_norm_eps', version.epsilon),
    rotary: readRotary(config, Math.floor(headSize * rotated), version.theta),
  });
}
