import { basename } from 'node:path';
import { elementCount } from '../checkpoint/dtype.js';
import type { TensorInfo } from '../checkpoint/header.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { MobeError } from '../errors.js';
import { detectModel } from '../models/detect.js';
import { findNativeGroups } from './native-groups.js';

export interface Tally {
  readonly tensors: number;
  readonly parameters: number;
  readonly bytes: number;
}

export interface Inspection {
  readonly folder: string;
  readonly modelType: string;
  /** Undefined where no experts were found. */
  readonly family: string | undefined;
  readonly architecture: string | undefined;
  readonly native: boolean;
  /** `num_hidden_layers` of the config. */
  readonly hiddenLayers: number | undefined;
  readonly expertLayers: readonly number[];
  readonly expertsPerLayer: number;
  /** [p, d] of a gate projection. */
  readonly expertShape: readonly number[] | undefined;
  readonly shards: ReadonlyArray<{ readonly file: string; readonly tensors: number; readonly bytes: number }>;
  readonly total: Tally;
  readonly kinds: Readonly<Record<string, Tally>>;
  readonly dtypes: Readonly<Record<string, Tally>>;
  /** Why this checkpoint cannot be converted, where it cannot. */
  readonly obstacle: string | undefined;
}

/** First match wins. */
const KINDS: ReadonlyArray<readonly [kind: string, pattern: RegExp]> = [
  ['routed experts: gate_proj', /\.experts\.\d+\.gate_proj\./],
  ['routed experts: up_proj', /\.experts\.\d+\.up_proj\./],
  ['routed experts: down_proj', /\.experts\.\d+\.down_proj\./],
  ['routed experts: other', /\.experts\./],
  ['MoBE bases and coefficients', /\.mlp\.[BW]_(gate|up)$/],
  ['shared experts', /shared_expert/],
  ['router', /\.(gate|router)\./],
  ['norms', /norm/],
  ['attention', /attn|attention/],
  ['dense feed-forward', /\.mlp\./],
  ['embeddings and head', /embed|lm_head|wte/],
];

/** What is in a checkpoint. Reads headers only; throws an `InputError` where the folder is damaged. */
export async function inspect(folder: string): Promise<Inspection> {
  const checkpoint = await openCheckpoint(folder);
  const { config, shards } = checkpoint;
  const tensors = [...checkpoint.tensors.values()];
  const native = tensors.some(({ name }) => /\.mlp\.B_(gate|up)/.test(name));
  const experts = describeExperts(() => {
    if (native) {
      const groups = findNativeGroups(checkpoint);
      const [{ problem }] = groups as [(typeof groups)[number]];
      return {
        family: 'native MoBE',
        layers: [...new Set(groups.map(({ layer }) => layer))],
        count: problem.experts,
        shape: [problem.rows, problem.cols],
      };
    }
    const { family, layers } = detectModel(checkpoint);
    const gate = layers[0]?.experts.gate_proj ?? [];
    return { family: family.name, layers: layers.map(({ layer }) => layer), count: gate.length, shape: gate[0]?.shape };
  });
  const kindOf = ({ name }: TensorInfo): string => KINDS.find(([, pattern]) => pattern.test(name))?.[0] ?? 'other';
  return {
    folder: checkpoint.folder,
    modelType: String(config.model_type ?? 'unknown'),
    family: experts.family,
    architecture: Array.isArray(config.architectures) ? String(config.architectures[0]) : undefined,
    native,
    hiddenLayers: typeof config.num_hidden_layers === 'number' ? config.num_hidden_layers : undefined,
    expertLayers: experts.layers,
    expertsPerLayer: experts.count,
    expertShape: experts.shape,
    shards: shards.map(({ path, bytes, tensors: held }) => ({ file: basename(path), tensors: held.length, bytes })),
    total: tally(tensors),
    kinds: tallyBy(tensors, kindOf),
    dtypes: tallyBy(tensors, ({ dtype }) => dtype),
    obstacle: experts.obstacle,
  };
}

interface Experts {
  family: string | undefined;
  layers: readonly number[];
  count: number;
  shape: readonly number[] | undefined;
  obstacle?: string;
}

/** A sound folder that cannot be converted is still worth looking at. */
function describeExperts(find: () => Experts): Experts {
  try {
    return find();
  } catch (error) {
    if (!(error instanceof MobeError)) throw error;
    return { family: undefined, layers: [], count: 0, shape: undefined, obstacle: error.message };
  }
}

const tally = (tensors: readonly TensorInfo[]): Tally => ({
  tensors: tensors.length,
  parameters: tensors.reduce((sum, { shape }) => sum + elementCount(shape), 0),
  bytes: tensors.reduce((sum, { start, end }) => sum + end - start, 0),
});

function tallyBy(tensors: readonly TensorInfo[], key: (tensor: TensorInfo) => string): Record<string, Tally> {
  const groups = new Map<string, TensorInfo[]>();
  for (const tensor of tensors) {
    const name = key(tensor);
    const group = groups.get(name);
    if (group) group.push(tensor);
    else groups.set(name, [tensor]);
  }
  return Object.fromEntries(
    [...groups].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, group]) => [name, tally(group)]),
  );
}
