/** The work of a conversion in parts that are done wholly or not at all: each copy, and each group. */
import { basename } from 'node:path';
import type { StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type ConversionPlan, type Copy, copyBytes } from '../../src/conversion/conversion-plan.js';
import { groupPlaces } from '../../src/conversion/group-places.js';
import { type GroupPlan, groupLabel } from '../../src/conversion/group-plan.js';
import type { Unit } from '../../src/output/unfinished-run.js';
import type { ByteRange } from '../../src/sources/files.js';

export const copyId = ({ target, offset }: Copy): string => `copy ${offset}:${target}`;

/** A group is finished once its report was noted. */
export function conversionUnits(plan: ConversionPlan): Unit[] {
  const shards = new Map(plan.source.shards.map(({ path }) => [path, basename(path)]));
  const shardsOf = (ranges: readonly ByteRange[]): string[] => [
    ...new Set(ranges.flatMap(({ file }) => shards.get(file) ?? [])),
  ];
  const copies = plan.copies.map((copy) => {
    const { target: tensor, offset, source, decode } = copy;
    const sources = shardsOf([source, ...(decode ? rangesOf(decode.matrix) : [])]);
    return { id: copyId(copy), parts: [{ tensor, offset, bytes: copyBytes(copy) }], noted: false, sources };
  });
  // σ belongs to all experts of a layer and projection, also where they are cut into groups.
  const ranges = new Map<string, ByteRange[]>();
  for (const group of plan.groups) {
    const key = layerPart(group);
    ranges.set(key, [...(ranges.get(key) ?? []), ...groupRanges(group, plan)]);
  }
  const groups = plan.groups.map((group) => {
    const { shared, experts } = groupPlaces(group, plan);
    const parts = [...shared, ...experts.flat()].map(({ tensor, offset, bytes }) => ({ tensor, offset, bytes }));
    return { id: groupLabel(group), parts, noted: true, sources: shardsOf(ranges.get(layerPart(group)) ?? []) };
  });
  return [...copies, ...groups];
}

const layerPart = ({ layer, projection }: GroupPlan): string => `${layer} ${projection}`;

const rangesOf = ({ data, scales, declaredShape }: StoredMatrix): ByteRange[] =>
  [data, scales, declaredShape].filter((range) => range !== undefined);

/** The experts; of a native source also the factors that they share. */
const groupRanges = ({ experts, names }: GroupPlan, { source }: ConversionPlan): ByteRange[] => [
  ...experts.flatMap(rangesOf),
  ...Object.values(names.shared).flatMap((name) => source.tensors.get(name) ?? []),
];
