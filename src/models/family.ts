/** What a family of Mixture-of-Experts models must tell: where its experts are and what the output config says. */
import type { TensorInfo } from '../checkpoint/header.js';

export const PROJECTIONS = ['gate_proj', 'up_proj', 'down_proj'] as const;
export type Projection = (typeof PROJECTIONS)[number];

/** The projections MoBE factorises; down_proj stays dense (arXiv 2508.05257, section 3). */
export const FACTORISED = ['gate_proj', 'up_proj'] as const satisfies readonly Projection[];
export type FactorisedProjection = (typeof FACTORISED)[number];

export interface Family {
  /** For people. */
  readonly name: string;
  /** `model_type` values of its config.json. */
  readonly modelTypes: readonly string[];
  /** The config key with the number of routed experts of a layer. */
  readonly expertCountKey: string;
  /** The config key with an expert's rows p. */
  readonly rowsKey: string;
  /** `architectures[0]` of a native output, or undefined where no native form is defined: such a model converts to hf. */
  readonly nativeArchitecture: string | undefined;
}

/** One layer's routed experts. */
export interface ExpertLayer {
  readonly layer: number;
  /** What comes before `experts.{e}` in the tensor names, e.g. `model.layers.3.mlp.` */
  readonly prefix: string;
  /** In expert order; all projections have the same number. */
  readonly experts: Readonly<Record<Projection, readonly TensorInfo[]>>;
}

export interface MoeModel {
  readonly family: Family;
  /** Sorted; layers without routed experts are absent. */
  readonly layers: readonly ExpertLayer[];
}
