/** Everything a conversion will write, from headers and flags alone. */

import { elementCount } from '../checkpoint/dtype.js';
import type { TensorInfo, TensorSpec } from '../checkpoint/header.js';
import { type Layout, layoutShards } from '../checkpoint/layout.js';
import { type Checkpoint, CONFIG_FILE, INDEX_FILE } from '../checkpoint/open-checkpoint.js';
import { type GroupPlan, groupTensors } from './groups.js';
import type { Format } from './settings.js';

export interface ConversionPlan {
  readonly source: Checkpoint;
  readonly groups: readonly GroupPlan[];
  readonly format: Format;
  readonly layout: Layout;
  /** Tensors that pass through, in the order of the source. */
  readonly copies: readonly TensorInfo[];
  readonly parametersBefore: number;
  readonly parametersAfter: number;
  /** Tensor bytes, without headers. */
  readonly bytesBefore: number;
  readonly bytesAfter: number;
}

/** Files of an output folder that make it loadable: they appear after everything else. */
export const LOADABLE_LAST = [INDEX_FILE, CONFIG_FILE] as const;

export interface PlanInput {
  source: Checkpoint;
  groups: readonly GroupPlan[];
  format: Format;
  shardBytes: number;
  /** Source tensors that neither pass through nor belong to a group's dense weights (an expansion's B and α). */
  dropped?: ReadonlySet<string>;
}

/**
 * Lays out the output in the order of the source; a group's bases and coefficients come where its first expert was, so
 * that copying and factorising both move through the files in one direction.
 */
export function planConversion({ source, groups, format, shardBytes, dropped }: PlanInput): ConversionPlan {
  const replaced = new Map<string, TensorSpec[]>();
  for (const group of groups) {
    const tensors = groupTensors(group, format);
    const shared = tensors.slice(0, tensors.length - group.experts.length);
    group.experts.forEach((expert, i) => {
      const own = tensors[shared.length + i] as TensorSpec;
      replaced.set(expert.name, [own]);
    });
    const earliest = group.experts.reduce((a, b) => (position(source, a) <= position(source, b) ? a : b));
    replaced.set(earliest.name, [...shared, ...(replaced.get(earliest.name) as TensorSpec[])]);
  }
  const copies: TensorInfo[] = [];
  const outputs: TensorSpec[] = [];
  for (const tensor of source.shards.flatMap((shard) => shard.tensors)) {
    const own = replaced.get(tensor.name);
    if (own) outputs.push(...own);
    else if (!dropped?.has(tensor.name)) {
      copies.push(tensor);
      outputs.push({ name: tensor.name, dtype: tensor.dtype, shape: tensor.shape, bytes: tensor.end - tensor.start });
    }
  }
  const layout = layoutShards(outputs, shardBytes);
  const tensors = [...source.tensors.values()];
  return {
    source,
    groups,
    format,
    layout,
    copies,
    parametersBefore: countParameters(tensors),
    parametersAfter: countParameters(outputs),
    bytesBefore: tensors.reduce((sum, { start, end }) => sum + end - start, 0),
    bytesAfter: layout.tensorBytes,
  };
}

const position = (source: Checkpoint, tensor: TensorInfo): number =>
  source.shards.findIndex(({ path }) => path === tensor.file) * 2 ** 44 + tensor.start;

const countParameters = (tensors: ReadonlyArray<{ shape: readonly number[] }>): number =>
  tensors.reduce((sum, { shape }) => sum + elementCount(shape), 0);

/** Bytes of the files a conversion writes, side files aside. */
export const outputBytes = ({ layout }: ConversionPlan): number =>
  layout.shards.reduce((sum, { bytes }) => sum + bytes, 0);
