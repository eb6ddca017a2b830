/** What an architecture's file makes of a checkpoint: every weight found and checked, and how the layers compute. */
import type { Attention } from './attention.js';
import type { ConfigReader } from './config-reader.js';
import type { LayerExperts } from './experts.js';
import type { RouterRule } from './router.js';
import type { Weight } from './weight.js';

export interface DenseLayer {
  readonly kind: 'dense';
  /** `norm` (d), `gate`, `up` (p, d), `down` (d, p) */
  readonly weights: Readonly<Record<'norm' | 'gate' | 'up' | 'down', Weight>>;
}

export interface ExpertsLayer {
  readonly kind: 'experts';
  /** `norm` (d), `router` (n, d), and of shared experts, all of them as one, `gate`, `up` (p, d), `down` (d, p) */
  readonly weights: Readonly<Record<'norm' | 'router', Weight> & Partial<Record<'gate' | 'up' | 'down', Weight>>>;
  /** (n), for choosing alone */
  readonly bias?: Weight | undefined;
  readonly rule: RouterRule;
  readonly experts: LayerExperts;
}

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
  /** The head's columns are to be scaled to length 1 (Ling's `norm_head`). */
  readonly headNormalised: boolean;
  /** ε of the norms. */
  readonly epsilon: number;
}

/** What a blueprint is drawn from. */
export interface Source {
  readonly config: ConfigReader;
  /** Throws `MissingTensorError` or `WeightShapeError`. */
  weight(name: string, shape: readonly number[]): Weight;
  /** By what comes before `experts.{e}` in their names; throws where there are none. */
  experts(prefix: string): LayerExperts;
  /** Replaces the config's number of experts a token. */
  readonly expertsPerToken?: number | undefined;
}

export interface Architecture {
  /** `model_type` values of its config.json. */
  readonly modelTypes: readonly string[];
  draw(source: Source): Blueprint;
}
