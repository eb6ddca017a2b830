/** The native MoBE checkpoint: tensor names and config keys that the reference's modelling files read. */
import type { ExpertLayer, FactorisedProjection, Family } from './family.js';

/** Matches the bases of a layer: prefix, and the short name of the projection. */
export const BASES_NAME = /^((?:.+\.)?layers\.(\d+)\.mlp\.)B_(gate|up)$/;

const SHORT: Record<FactorisedProjection, string> = { gate_proj: 'gate', up_proj: 'up' };

/** `B_gate`: the layer's bases before the activation, [m, r, d]. */
export const basesName = (prefix: string, projection: FactorisedProjection): string =>
  `${prefix}B_${SHORT[projection]}`;

/** `W_gate`: the coefficients α as they multiply, [n, m]. */
export const coefficientsName = (prefix: string, projection: FactorisedProjection): string =>
  `${prefix}W_${SHORT[projection]}`;

/** `experts.{j}.gate_proj.weight`: A·σ, [p, r], under the name the dense weight had. */
export const expertName = (
  { prefix }: Pick<ExpertLayer, 'prefix'>,
  expert: number,
  projection: FactorisedProjection,
): string => `${prefix}experts.${expert}.${projection}.weight`;

/** What is special about a native checkpoint, beside its source's config. */
export interface NativeSettings {
  bases: number;
  rank: number;
  activation: 'silu' | 'tanh';
  layers: readonly number[];
  projections: readonly FactorisedProjection[];
  solver: string;
  sourceFingerprint: string;
}

/**
 * `num_B` and `activation` are what the reference writes. It forgets the rest: which layers and projections hold factors
 * (all others are as in the source), the rank, and the architecture.
 */
export function nativeConfig(
  source: Readonly<Record<string, unknown>>,
  family: Family,
  { bases, activation, rank, layers, projections, solver, sourceFingerprint }: NativeSettings,
): Record<string, unknown> {
  return {
    ...source,
    architectures: [family.nativeArchitecture],
    num_B: bases,
    activation,
    mobe: {
      format_version: 1,
      rank,
      groups: 1,
      layers,
      projections,
      solver,
      source_architectures: source.architectures ?? null,
      source_fingerprint: sourceFingerprint,
    },
  };
}

/** The source's config, given back. */
export function denseConfig({
  num_B,
  activation,
  mobe,
  ...rest
}: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const { source_architectures: architectures } = (mobe ?? {}) as { source_architectures?: unknown };
  return architectures ? { ...rest, architectures } : rest;
}
