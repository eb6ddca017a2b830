/** The decoder that all families share: attention with a norm before it, then a gated layer or experts. */
import type { Architecture, Blueprint, DecoderLayer, Source } from './architecture.js';
import type { Attention } from './attention.js';
import type { ConfigReader } from './config-reader.js';
import type { RouterRule } from './router.js';
import type { Weight } from './weight.js';

/** ε of the norms if neither the config nor the family has one. */
const EPSILON = 1e-6;

/** The differences between families. */
export interface Decoder {
  /** `model_type` values of its config.json. */
  readonly modelTypes: readonly string[];
  /** Name of the embedding after `model.`; default: `embed_tokens`. */
  readonly embedding?: string;
  /** ε of the norms if the config has none. */
  readonly epsilon?: number;
  /** Whether the head's columns are scaled to length 1. Default: no. */
  headNormalised?(config: ConfigReader): boolean;
  /** Whether config.json gives the layer experts. */
  isMoeLayer(layer: number, config: ConfigReader['entries']): boolean;
  /** @param prefix `model.layers.{l}.` */
  attention(source: Source, prefix: string): Attention;
  rule(source: Source): RouterRule;
  /** Name after `mlp.gate.` of the router's bias, if it has one. The bias affects only which experts are chosen. */
  readonly routerBias?: string | undefined;
  /** Rows of the shared experts together: they are stored as one. Default: 0. */
  sharedRows?(config: ConfigReader): number;
}

/** The architecture of a family. */
export const decoder = (family: Decoder): Architecture => ({
  modelTypes: family.modelTypes,
  draw(source) {
    const { config, weight } = source;
    const width = config.number('hidden_size');
    const vocabulary = config.number('vocab_size');
    const embedding = weight(`model.${family.embedding ?? 'embed_tokens'}.weight`, [vocabulary, width]);
    const layers = config.number('num_hidden_layers');
    return {
      embedding,
      layers: Array.from({ length: layers }, (_, layer) => decoderLayer(source, family, layer)),
      norm: weight('model.norm.weight', [width]),
      head: config.flag('tie_word_embeddings', false) ? embedding : weight('lm_head.weight', [vocabulary, width]),
      headNormalised: family.headNormalised?.(config) ?? false,
      epsilon: config.number('rms_norm_eps', family.epsilon ?? EPSILON),
    } satisfies Blueprint;
  },
});

function decoderLayer(source: Source, family: Decoder, layer: number): DecoderLayer {
  const { config, weight } = source;
  const width = config.number('hidden_size');
  const prefix = `model.layers.${layer}.`;
  const norm = weight(`${prefix}post_attention_layernorm.weight`, [width]);
  const gated = (name: string, rows: number) => gatedWeights(source, `${prefix}mlp.${name}`, width, rows);
  if (!family.isMoeLayer(layer, config.entries)) {
    const weights = { norm, ...gated('', config.number('intermediate_size')) };
    return { attention: family.attention(source, prefix), feedForward: { kind: 'dense', weights } };
  }
  const experts = source.experts(`${prefix}mlp.`);
  const shared = family.sharedRows?.(config) ?? 0;
  const { routerBias } = family;
  return {
    attention: family.attention(source, prefix),
    feedForward: {
      kind: 'experts',
      weights: {
        norm,
        router: weight(`${prefix}mlp.gate.weight`, [experts.count, width]),
        ...(shared && gated('shared_experts.', shared)),
      },
      ...(routerBias && { bias: weight(`${prefix}mlp.gate.${routerBias}`, [experts.count]) }),
      rule: family.rule(source),
      experts,
    },
  };
}

/** `gate`, `up` and `down` of a gated layer. Their names are the same in all families. */
const gatedWeights = (
  { weight }: Source,
  prefix: string,
  width: number,
  rows: number,
): Record<'gate' | 'up' | 'down', Weight> => ({
  gate: weight(`${prefix}gate_proj.weight`, [rows, width]),
  up: weight(`${prefix}up_proj.weight`, [rows, width]),
  down: weight(`${prefix}down_proj.weight`, [width, rows]),
});
