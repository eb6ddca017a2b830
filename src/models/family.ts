/** What a family of Mixture-of-Experts models must tell: where its experts are and what the output config says. */
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';

export const PROJECTIONS = ['gate_proj', 'up_proj', 'down_proj'] as const;
export type Projection = (typeof PROJECTIONS)[number];

/** The projections the paper factorises; down_proj stays dense (arXiv 2508.05257, section 3). */
export const DEFAULT_PROJECTIONS: readonly Projection[] = ['gate_proj', 'up_proj'];

export type Config = Readonly<Record<string, unknown>>;

export interface Family {
  /** For people. */
  readonly name: string;
  /** `model_type` values of its config.json. */
  readonly modelTypes: readonly string[];
  /** The config key with the number of routed experts of a layer. */
  readonly expertCountKey: string;
  /** The config key with an expert's rows p. */
  readonly rowsKey: string;
  /** Whether the config gives this layer routed experts; undefined: the family's config does not tell. */
  readonly isMoeLayer?: (layer: number, config: Config) => boolean;
  /** Undefined where no native form is defined: such a model converts to standard weights. */
  readonly native?: NativeForm;
}

/** How a family's native checkpoints are loaded: by modelling files of ours that they carry. */
export interface NativeForm {
  /** `architectures[0]` */
  readonly architecture: string;
  /** The class of its config. */
  readonly configClass: string;
  /** The module, among src/models/modeling, that defines both. */
  readonly module: string;
}

/** One layer's routed experts. */
export interface ExpertLayer {
  readonly layer: number;
  /** What comes before `experts.{e}` in the standard tensor names, e.g. `model.layers.3.mlp.` */
  readonly prefix: string;
  /** In expert order; all projections have the same number. */
  readonly experts: Readonly<Record<Projection, readonly StoredMatrix[]>>;
}

export interface MoeModel {
  readonly family: Family;
  /** Sorted; layers without routed experts are absent. */
  readonly layers: readonly ExpertLayer[];
  /** Where the config says otherwise than the tensors, which count: a sentence each. */
  readonly notes: readonly string[];
}

/** A whole number of the config, or undefined. */
export const numberOf = (config: Config, key: string): number | undefined =>
  Number.isSafeInteger(config[key]) ? (config[key] as number) : undefined;

/** Dense layers first, then every `moe_layer_freq`-th with experts: DeepSeek's rule, and of those that followed it. */
export function followsDenseLayers(layer: number, config: Config): boolean {
  const frequency = numberOf(config, 'moe_layer_freq') ?? 1;
  return layer >= (numberOf(config, 'first_k_dense_replace') ?? 0) && (frequency <= 0 || layer % frequency === 0);
}

/** Every `decoder_sparse_step`-th layer, but those in `mlp_only_layers`: Qwen's rule. */
export function isSparseStep(layer: number, config: Config): boolean {
  const step = numberOf(config, 'decoder_sparse_step') ?? 1;
  const dense = Array.isArray(config.mlp_only_layers) ? config.mlp_only_layers : [];
  return step > 0 && (layer + 1) % step === 0 && !dense.includes(layer);
}
