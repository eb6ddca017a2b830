import { basename } from 'node:path';
import { elementCount } from '../checkpoint/dtype.js';
import { describeEncoding } from '../checkpoint/encoding.js';
import { factorEncoding, isQuantisedDtype } from '../checkpoint/factor-dtype.js';
import type { TensorInfo } from '../checkpoint/header.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { attachedTo, isQuantised, matrixName, quantisedMatrix } from '../checkpoint/quantisation.js';
import { MobeError } from '../errors.js';
import { detectModel, languageConfig, sizesOf } from '../models/detect.js';
import { expertsOf } from '../models/expert-names.js';
import { numberOf } from '../models/family.js';
import { modelTypeOf } from '../models/native-forms.js';
import { expertName } from '../models/published-layouts.js';
import { parametersOf } from './conversion-plan.js';
import { factorTensorsOf, findNativeGroups, nativeMethod } from './native-groups.js';

/** A count of tensors with their parameters and bytes. */
export interface Tally {
  readonly tensors: number;
  readonly parameters: number;
  readonly bytes: number;
}

/** A description of a checkpoint from its headers and its config. */
export interface Inspection {
  readonly folder: string;
  readonly modelType: string;
  /** Undefined if no experts were found. */
  readonly family: string | undefined;
  readonly architecture: string | undefined;
  readonly native: boolean;
  /** `num_hidden_layers` of the config. */
  readonly hiddenLayers: number | undefined;
  readonly expertLayers: readonly number[];
  /** The most that a layer has. */
  readonly expertsPerLayer: number;
  /** The number of experts in each of `expertLayers`, in the same order. */
  readonly expertCounts: readonly number[];
  /** The shape [p, d] of an expert's gate and up projections. */
  readonly expertShape: readonly number[] | undefined;
  /** The number of quantised matrices of each kind. */
  readonly quantised: Readonly<Record<string, number>>;
  readonly shards: ReadonlyArray<{ readonly file: string; readonly tensors: number; readonly bytes: number }>;
  readonly total: Tally;
  readonly kinds: Readonly<Record<string, Tally>>;
  readonly dtypes: Readonly<Record<string, Tally>>;
  /** The reason why this checkpoint cannot be converted; undefined if it can. */
  readonly obstacle: string | undefined;
  /** Sentences on files that are not read or not copied, and on differences between the config and the tensors. */
  readonly notes: readonly string[];
}

/** Kinds of tensors that are no weights of experts, by name. The first match counts. */
const KINDS: ReadonlyArray<readonly [kind: string, pattern: RegExp]> = [
  ['routed experts: other', /\.experts\./],
  ['MoBE bases and coefficients', /\.mlp\.[BW]_(gate|up|down)(_\d+)?(_packed|_scale)?$/],
  ['shared experts', /shared_expert/],
  ['router', /\.(gate|router)\./],
  ['norms', /norm/],
  ['attention', /attn|attention/],
  ['dense feed-forward', /\.mlp\./],
  ['embeddings and head', /embed|lm_head|wte/],
];

/** Describes a checkpoint from its headers. */
export function inspectCheckpoint(checkpoint: Checkpoint): Inspection {
  const { config, shards } = checkpoint;
  const tensors = [...checkpoint.tensors.values()];
  const native = nativeMethod(checkpoint);
  let factors: Factors = new Map();
  const experts = describeExperts(() => {
    if (native) {
      const groups = findNativeGroups(checkpoint);
      factors = factorTensorsOf(groups);
      const [{ problem, groups: parts }] = groups as [(typeof groups)[number]];
      return {
        family: `native ${native.title}`,
        layers: [...new Set(groups.map(({ layer }) => layer))].sort((a, b) => a - b),
        counts: [...new Set(groups.map(({ layer }) => layer))].map(() => problem.experts * parts),
        shape: [problem.rows, problem.cols],
      };
    }
    const { family, layers, notes } = detectModel(checkpoint);
    const sizes = layers.map(sizesOf);
    return {
      family: family.name,
      layers: layers.map(({ layer }) => layer),
      counts: sizes.map(({ count }) => count),
      shape: sizes[0] && [sizes[0].rows, sizes[0].cols],
      notes,
    };
  });
  const kindOf = (tensor: TensorInfo): string => {
    const { name } = attachedTo(tensor, checkpoint) ?? tensor;
    const expert = expertName(matrixName(name));
    if (expert) return `routed experts: ${expert.projections.join(' and ')}`;
    return KINDS.find(([, pattern]) => pattern.test(name))?.[0] ?? 'other';
  };
  return {
    folder: checkpoint.folder,
    modelType: modelTypeOf(config),
    family: experts.family,
    architecture: Array.isArray(config.architectures) ? String(config.architectures[0]) : undefined,
    native: native !== undefined,
    hiddenLayers: numberOf(languageConfig(config), 'num_hidden_layers'),
    expertLayers: experts.layers,
    expertsPerLayer: Math.max(0, ...experts.counts),
    expertCounts: experts.counts,
    expertShape: experts.shape,
    shards: shards.map(({ path, bytes, tensors: held }) => ({ file: basename(path), tensors: held.length, bytes })),
    quantised: countQuantised(checkpoint, factors),
    total: tally(tensors, checkpoint, factors),
    kinds: tallyBy(tensors, kindOf, checkpoint, factors),
    dtypes: tallyBy(tensors, ({ dtype }) => dtype, checkpoint, factors),
    obstacle: experts.obstacle,
    notes: [...checkpoint.notes, ...(experts.notes ?? [])],
  };
}

interface Experts {
  family: string | undefined;
  layers: readonly number[];
  counts: readonly number[];
  shape: readonly number[] | undefined;
  notes?: readonly string[];
  obstacle?: string;
}

/** Turns an error into `obstacle`: a checkpoint that cannot be converted can still be inspected. */
function describeExperts(find: () => Experts): Experts {
  try {
    return find();
  } catch (error) {
    if (!(error instanceof MobeError)) throw error;
    return { family: undefined, layers: [], counts: [], shape: undefined, obstacle: error.message };
  }
}

/** The tensors that hold factors, by name. */
type Factors = ReturnType<typeof factorTensorsOf>;

/** The number of weights. A quantised tensor whose scales are missing counts its elements. */
function parameters(tensor: TensorInfo, checkpoint: Checkpoint, factors: Factors): number {
  const factor = factors.get(tensor.name);
  if (factor) return factor.part.parameters;
  try {
    return parametersOf(tensor, checkpoint);
  } catch {
    return elementCount(tensor.shape);
  }
}

function countQuantised(checkpoint: Checkpoint, factors: Factors): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const tensor of checkpoint.tensors.values()) {
    const part = factors.get(tensor.name)?.part;
    if (part ? !isQuantisedDtype(part.factorDtype) || part.parameters === 0 : !isQuantised(tensor)) continue;
    let kind: string;
    if (part) kind = describeEncoding(factorEncoding(part.factorDtype));
    else
      try {
        const [expert] = expertsOf(tensor, checkpoint); // a fused tensor has several matrices
        kind = describeEncoding((expert?.matrix ?? quantisedMatrix(tensor, checkpoint)).encoding);
      } catch {
        kind = `${tensor.dtype} that cannot be decoded`;
      }
    counts[kind] = (counts[kind] ?? 0) + 1;
  }
  return counts;
}

const tally = (tensors: readonly TensorInfo[], checkpoint: Checkpoint, factors: Factors): Tally => ({
  tensors: tensors.length,
  parameters: tensors.reduce((sum, tensor) => sum + parameters(tensor, checkpoint, factors), 0),
  bytes: tensors.reduce((sum, { start, end }) => sum + end - start, 0),
});

function tallyBy(
  tensors: readonly TensorInfo[],
  key: (tensor: TensorInfo) => string,
  checkpoint: Checkpoint,
  factors: Factors,
): Record<string, Tally> {
  const groups = new Map<string, TensorInfo[]>();
  for (const tensor of tensors) {
    const name = key(tensor);
    const group = groups.get(name);
    if (group) group.push(tensor);
    else groups.set(name, [tensor]);
  }
  return Object.fromEntries(
    [...groups].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, group]) => [name, tally(group, checkpoint, factors)]),
  );
}
