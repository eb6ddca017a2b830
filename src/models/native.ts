/** The native MoBE checkpoint: tensor names and config keys that the reference's modelling files read. */
import { editPythonJson } from '../checkpoint/python-json.js';
import type { ExpertLayer, NativeForm, Projection } from './family.js';

/** Matches the bases of a group: prefix, layer, short name of the projection, index of the group where there are several. */
export const BASES_NAME = /^((?:.+\.)?layers\.(\d+)\.mlp\.)B_(gate|up|down)(?:_(\d+))?$/;

export const SHORT_NAMES = { gate_proj: 'gate', up_proj: 'up', down_proj: 'down' } as const satisfies Record<
  Projection,
  string
>;

/** Part of a layer's experts: all of them are group 0 of 1. */
export interface GroupNumber {
  readonly group: number;
  readonly groups: number;
}

const suffix = ({ group, groups }: GroupNumber): string => (groups === 1 ? '' : `_${group}`);

/** `B_gate`: a group's bases before the activation, [m, r, d]; `B_gate_1` where the layer has several groups. */
export const basesName = (prefix: string, projection: Projection, number: GroupNumber): string =>
  `${prefix}B_${SHORT_NAMES[projection]}${suffix(number)}`;

/** `W_gate`: the coefficients α as they multiply, [n, m]. */
export const coefficientsName = (prefix: string, projection: Projection, number: GroupNumber): string =>
  `${prefix}W_${SHORT_NAMES[projection]}${suffix(number)}`;

/** `experts.{j}.gate_proj.weight`: A·σ, [p, r], under the name the dense weight had. */
export const expertName = ({ prefix }: Pick<ExpertLayer, 'prefix'>, expert: number, projection: Projection): string =>
  `${prefix}experts.${expert}.${projection}.weight`;

/** What is special about a native checkpoint, beside its source's config. */
export interface NativeSettings {
  /** Of a layer and projection, over all its groups. */
  bases: number;
  groups: number;
  rank: number;
  activation: string;
  layers: readonly number[];
  projections: readonly Projection[];
  solver: string;
  sourceFingerprint: string;
}

/** Entries of `config.json` that change, by their dotted path; undefined: to be removed. */
export type ConfigChanges = Readonly<Record<string, unknown>>;

/**
 * `num_B` and `activation` are what the reference writes. It forgets the rest: which layers and projections hold factors (all
 * others are as in the source), the rank, the groups, and how to load it.
 */
export function nativeConfig(
  source: Readonly<Record<string, unknown>>,
  { architecture, configClass, module }: NativeForm,
  { bases, groups, activation, rank, layers, projections, solver, sourceFingerprint }: NativeSettings,
): ConfigChanges {
  return {
    architectures: [architecture],
    auto_map: { AutoConfig: `${module}.${configClass}`, AutoModelForCausalLM: `${module}.${architecture}` },
    num_B: bases,
    activation,
    mobe: {
      format_version: 1,
      rank,
      groups,
      layers,
      projections,
      solver,
      source_architectures: source.architectures ?? null,
      source_auto_map: source.auto_map ?? null,
      source_fingerprint: sourceFingerprint,
    },
  };
}

/** From a native config back to its source's. */
export function denseConfig({ mobe }: Readonly<Record<string, unknown>>): ConfigChanges {
  const { source_architectures: architectures, source_auto_map: autoMap } = (mobe ?? {}) as Record<string, unknown>;
  return {
    ...(architectures ? { architectures } : {}),
    auto_map: autoMap ?? undefined,
    num_B: undefined,
    activation: undefined,
    mobe: undefined,
  };
}

/** Applies changes to the text of a config, leaving the rest as it was written. */
export const editConfig = (text: string, changes: ConfigChanges): string => editPythonJson(text, changes);
