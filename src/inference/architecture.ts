/** Description of a model: every weight, found in the checkpoint and checked, and how each layer computes. */
import type { Attention } from './attention.js';
import type { ConfigReader } from './config-reader.js';
import type { LayerExperts } from './experts.js';
import type { RouterRule } from './router.js';
import type { Weight } from './weight.js';

/** A gated feed-forward layer without experts. Letters: d hidden size, p rows. */
export interface DenseLayer {
  readonly kind: 'dense';
  /** `norm` (d), `gate`, `up` (p, d), `down` (d, p) */
  readonly weights: Readonly<Record<'norm' | 'gate' | 'up' | 'down', Weight>>;
}

/** A feed-forward layer of n experts. */
export interface ExpertsLayer {
  readonly kind: 'experts';
  /** `norm` (d) and `router` (n, d). `gate`, `up` (p, d) and `down` (d, p) hold all shared experts, stacked as one. */
  readonly weights: Readonly<Record<'norm' | 'router', Weight> & Partial<Record<'gate' | 'up' | 'down', Weight>>>;
  /** (n). It affects which experts are chosen, but not their weights. */
  readonly bias?: Weight | undefined;
  readonly rule: RouterRule;
  readonly experts: LayerExperts;
}

/** One layer of the model. */
export interface DecoderLayer {
  readonly attention: Attention;
  readonly feedForward: DenseLayer | ExpertsLayer;
}

/** A decoder-only language model. Letters: d hidden size, v vocabulary. */
export interface Blueprint {
  /** (v, d) */
  readonly embedding: Weight;
  readonly layers: readonly DecoderLayer[];
  /** (d) */
  readonly norm: Weight;
  /** (v, d) */
  readonly head: Weight;
  /** Whether the head's columns must be scaled to length 1 (Ling's `norm_head`). */
  readonly headNormalised: boolean;
  /** ε of the RMS norms. */
  readonly epsilon: number;
}

/** Input of `Architecture.draw`: a checkpoint's config and weights. */
export interface Source {
  readonly config: ConfigReader;
  /** Finds a weight by name. Throws a `MissingTensorError` or a `WeightShapeError`. */
  weight(name: string, shape: readonly number[]): Weight;
  /** Finds a layer's experts. `prefix` is the part of their names before `experts.{e}`. Throws a `MissingExpertError`. */
  experts(prefix: string): LayerExperts;
  /** Replaces the config's number of experts a token. */
  readonly expertsPerToken?: number | undefined;
}

/** An architecture that can be run. */
export interface Architecture {
  /** `model_type` values of its config.json. */
  readonly modelTypes: readonly string[];
  /** Finds all weights of a model. Throws an `InputError` if one is missing or does not fit the config. */
  draw(source: Source): Blueprint;
}
