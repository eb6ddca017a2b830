/**
 * The description of a family of Mixture-of-Experts models: where its experts are, and how its native checkpoints are loaded.
 */
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';

/** The projections of an expert. */
export const PROJECTIONS = ['gate_proj', 'up_proj', 'down_proj'] as const;
/** A weight matrix of an expert. */
export type Projection = (typeof PROJECTIONS)[number];

/** The projections that the paper factorises. down_proj stays dense (arXiv 2508.05257, section 3). */
export const DEFAULT_PROJECTIONS: readonly Projection[] = ['gate_proj', 'up_proj'];

/** The content of a `config.json`. */
export type Config = Readonly<Record<string, unknown>>;

/** A family of models: how its checkpoints are recognised and how their experts are named. */
export interface Family {
  /** The name in messages. */
  readonly name: string;
  /** The values of `model_type` in config.json. */
  readonly modelTypes: readonly string[];
  /** The config key with the number of routed experts of a layer. */
  readonly expertCountKey: string;
  /** The config key with an expert's rows p. */
  readonly rowsKey: string;
  /** Whether a layer has routed experts according to the config. Undefined if the family's config does not say. */
  readonly isMoeLayer?: (layer: number, config: Config) => boolean;
  /** The native form. Undefined if there is none; such a model converts only to standard weights. */
  readonly native?: NativeForm;
}

/** How a model's native checkpoints are loaded: by modelling files of this project, which are copied into them. */
export interface NativeForm {
  /** `model_type` */
  readonly modelType: string;
  /** `architectures[0]` */
  readonly architecture: string;
  /** The module in src/models/modeling that defines the classes. */
  readonly module: string;
  /** The class of the config. */
  readonly configClass: string;
  /** The class that loads the model. */
  readonly modelClass: string;
  /** The auto classes of transformers that load it. */
  readonly autoClasses: readonly string[];
}

/** The routed experts of one layer. */
export interface ExpertLayer {
  readonly layer: number;
  /** The part of standard tensor names before `experts.{e}`, e.g. `model.layers.3.mlp.` */
  readonly prefix: string;
  /** In expert order; all projections have the same number. Empty for a projection that the experts do not have. */
  readonly experts: Readonly<Record<Projection, readonly StoredMatrix[]>>;
}

/** A checkpoint of a family, with its layers of experts. */
export interface MoeModel {
  readonly family: Family;
  /** The layers with routed experts, sorted. */
  readonly layers: readonly ExpertLayer[];
  /** Sentences on differences between the config and the tensors. The tensors count. */
  readonly notes: readonly string[];
  /** Those of the notes because of which the model has no native form. */
  readonly differences?: readonly string[];
}

/** An entry of the config if it is a whole number, else undefined. */
export const numberOf = (config: Config, key: string): number | undefined =>
  Number.isSafeInteger(config[key]) ? (config[key] as number) : undefined;

/** DeepSeek's rule, which others took over: dense layers first, then every `moe_layer_freq`-th layer has experts. */
export function followsDenseLayers(layer: number, config: Config): boolean {
  const frequency = numberOf(config, 'moe_layer_freq') ?? 1;
  return layer >= (numberOf(config, 'first_k_dense_replace') ?? 0) && (frequency <= 0 || layer % frequency === 0);
}

/** Qwen's rule: every `decoder_sparse_step`-th layer has experts, except those in `mlp_only_layers`. */
export function isSparseStep(layer: number, config: Config): boolean {
  const step = numberOf(config, 'decoder_sparse_step') ?? 1;
  const dense = Array.isArray(config.mlp_only_layers) ? config.mlp_only_layers : [];
  return step > 0 && (layer + 1) % step === 0 && !dense.includes(layer);
}
