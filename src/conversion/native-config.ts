/** Makes the config of a native checkpoint, and the config of the dense model from it. */
import { dtypeName, isQuantisedDtype, type QuantisedDtype } from '../checkpoint/factor-dtype.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { quantisationEntries } from '../checkpoint/quantisation-entries.js';
import { UnevenFactorsError } from '../errors.js';
import { describeDtypes, hasCodes, type StoredDtypes } from '../methods/factor-storage.js';
import { layoutOf } from '../models/expert-layout.js';
import type { Config, ExpertLayer, MoeModel, NativeForm } from '../models/family.js';
import type { ConfigChanges } from '../models/native.js';
import { modelTypeOf } from '../models/native-forms.js';
import type { ConversionPlan } from './conversion-plan.js';
import { compareGroups, type GroupPlan, groupLabel } from './group-plan.js';
import { FORMAT_VERSION } from './native-factors.js';

/** The facts about a run that a native config records. */
export interface Origin {
  readonly solver: string;
  readonly sourceFingerprint: string;
}

/**
 * The config entries of a native checkpoint. The reference writes only `num_B` and `activation`. The other entries are needed
 * too: which layers and projections have factors, of which sizes, and how to load the model and to restore its source's layout.
 */
export function nativeConfig(
  { source, groups }: ConversionPlan,
  { layers }: MoeModel,
  { modelType, architecture, module, configClass, modelClass, autoClasses }: NativeForm,
  { solver, sourceFingerprint }: Origin,
): ConfigChanges {
  const parts = [...groups].sort(compareGroups).filter(({ group }, i, all) => {
    checkComplete(all, i);
    return group === 0;
  });
  const [{ method, problem, stored, groups: count }] = parts as [GroupPlan];
  const held = new Set(parts.map(({ layer }) => layer));
  const factors = listFactors(parts);
  const { config } = source;
  return {
    model_type: modelType,
    architectures: [architecture],
    auto_map: {
      AutoConfig: `${module}.${configClass}`,
      ...Object.fromEntries(autoClasses.map((name) => [name, `${module}.${modelClass}`])),
    },
    ...(factors.length === 1 && !hasCodes(stored) && method.native?.common?.(problem, count)),
    mobe: {
      format_version: FORMAT_VERSION,
      method: method.name,
      ...describeExperts(
        layers.filter(({ layer }) => held.has(layer)),
        source,
      ),
      factors,
      solver,
      source_model_type: modelTypeOf(config),
      source_architectures: config.architectures ?? null,
      source_auto_map: config.auto_map ?? null,
      source_fingerprint: sourceFingerprint,
    },
  };
}

/** Throws `UnevenFactorsError` if the groups before one, sorted, are not those of its projection, or have other sizes. */
function checkComplete(sorted: readonly GroupPlan[], i: number): void {
  const own = sorted[i] as GroupPlan;
  const first = sorted[i - own.group];
  for (let group = 0; group < own.groups; group++) {
    const other = sorted[i - own.group + group];
    const label = groupLabel({ ...own, group });
    if (!first || !other || groupLabel(other) !== label) throw new UnevenFactorsError(`${label} is missing`);
  }
  const { method, problem, stored } = first as GroupPlan;
  const sizes = (it: GroupPlan): string => JSON.stringify(it.method.native?.sizes(it.problem, it.groups));
  if (sizes(own) !== sizes(first as GroupPlan))
    throw new UnevenFactorsError(
      `${groupLabel(own)} has ${own.method.describe(own.problem)}, ${groupLabel(first as GroupPlan)} ${method.describe(problem)}`,
    );
  const dtypes = (it: StoredDtypes): string => JSON.stringify(dtypeEntries(it));
  if (dtypes(own.stored) !== dtypes(stored))
    throw new UnevenFactorsError(
      `the factors of ${groupLabel(own)} are ${describeDtypes(own.stored)}, those of ${groupLabel(first as GroupPlan)} ${describeDtypes(stored)}`,
    );
}

/** The sizes of all projections: one entry for those that have the same. */
function listFactors(parts: readonly GroupPlan[]): Array<Record<string, unknown>> {
  const sizesOf = ({ method, problem, groups, stored }: GroupPlan) => ({
    ...method.native?.sizes(problem, groups),
    ...dtypeEntries(stored),
  });
  // First the projections of each layer that have the same sizes, then the layers that are alike.
  const inLayer = new Map<string, { layer: number; projections: string[]; sizes: Record<string, unknown> }>();
  for (const part of parts) {
    const key = `${part.layer} ${JSON.stringify(sizesOf(part))}`;
    const entry = inLayer.get(key) ?? { layer: part.layer, projections: [], sizes: sizesOf(part) };
    entry.projections.push(part.projection);
    inLayer.set(key, entry);
  }
  const entries = new Map<string, { layers: number[]; projections: string[] }>();
  for (const { layer, projections, sizes } of inLayer.values()) {
    const key = JSON.stringify([projections, sizes]);
    const entry = entries.get(key) ?? { layers: [], projections, ...sizes };
    entry.layers.push(layer);
    entries.set(key, entry);
  }
  return [...entries.values()];
}

/** The entries of a projection that tell its dtypes; none if no factor is quantised, because tensors then show them. */
function dtypeEntries(stored: StoredDtypes): Record<string, unknown> {
  if (!hasCodes(stored)) return {};
  const { own, shared } = stored;
  const [quantised] = [own, shared].filter(isQuantisedDtype) as [QuantisedDtype];
  return { dtype: dtypeName(own), bases_dtype: dtypeName(shared), scale_group: quantised.scaleGroup };
}

/** Describes how the source stores the experts of these layers. Throws `UnevenFactorsError` if layers store them differently. */
function describeExperts(
  layers: readonly ExpertLayer[],
  { tensors }: Checkpoint,
): { prefix: string; experts: unknown } {
  const described = layers.map((layer) => ({
    prefix: layer.prefix.replace(new RegExp(`\\.${layer.layer}\\.(?!.*\\.${layer.layer}\\.)`), '.{layer}.'),
    experts: layoutOf(layer, tensors),
  }));
  const [first] = described as [(typeof described)[number]];
  const other = described.findIndex((it) => JSON.stringify(it) !== JSON.stringify(first));
  if (other > 0)
    throw new UnevenFactorsError(
      `experts are stored as ${layers[other]?.prefix}${describeNames(described[other])}, and as ${layers[0]?.prefix}${describeNames(first)}`,
    );
  return first;
}

const describeNames = (described: { experts: ReturnType<typeof layoutOf> } | undefined): string =>
  described?.experts.map(({ name }) => name).join(', ') ?? '';

/**
 * The changes to a native config that make it that of the dense model again. The entry on quantisation goes if its last tensors are
 * decoded: the other experts of converted layers.
 */
export function denseConfig({
  source: { config },
  quantised,
}: Pick<ConversionPlan, 'source' | 'quantised'>): ConfigChanges {
  const { mobe } = config;
  const entries = quantisationEntries(config);
  const gone = quantised.before > 0 && quantised.after === 0 ? entries : [];
  const decoded = entries.filter(({ entry }) => entry.quant_method === 'fp8' && entry.dequantize);
  const { source_model_type, source_architectures, source_auto_map } = (mobe ?? {}) as Config;
  return {
    ...(source_model_type ? { model_type: source_model_type } : {}),
    ...(source_architectures !== undefined ? { architectures: source_architectures ?? undefined } : {}),
    auto_map: source_auto_map ?? undefined,
    num_B: undefined,
    activation: undefined,
    mobe: undefined,
    ...Object.fromEntries(gone.map(({ path }) => [path, undefined])),
    ...(gone.length === 0 && Object.fromEntries(decoded.map(({ path }) => [`${path}.dequantize`, undefined]))),
  };
}
