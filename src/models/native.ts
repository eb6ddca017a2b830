/** The native MoBE checkpoint: tensor names and config keys that the reference's modelling files read. */
import { applyEdits, modify } from 'jsonc-parser';
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
 * Entries of `config.json` that change; undefined: to be removed. `num_B` and `activation` are what the reference writes.
 * It forgets the rest: which layers and projections hold factors (all others are as in the source), the rank, and the
 * architecture.
 */
export type ConfigChanges = Readonly<Record<string, unknown>>;

export function nativeConfig(
  source: Readonly<Record<string, unknown>>,
  family: Family,
  { bases, activation, rank, layers, projections, solver, sourceFingerprint }: NativeSettings,
): ConfigChanges {
  return {
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

/** From a native config back to its source's. */
export function denseConfig({ mobe }: Readonly<Record<string, unknown>>): ConfigChanges {
  const { source_architectures: architectures } = (mobe ?? {}) as { source_architectures?: unknown };
  return { ...(architectures ? { architectures } : {}), num_B: undefined, activation: undefined, mobe: undefined };
}

/**
 * Applies changes to the text of a config, leaving the rest as it was written: parsing and printing it again would turn
 * 10000.0 into 10000, which a strict loader takes for an integer.
 */
export function editConfig(text: string, changes: ConfigChanges): string {
  const formattingOptions = { insertSpaces: true, tabSize: 2, eol: '\n' };
  return Object.entries(changes).reduce(
    (edited, [key, value]) => applyEdits(edited, modify(edited, [key], value, { formattingOptions })),
    text,
  );
}
