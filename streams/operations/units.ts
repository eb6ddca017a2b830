/** The work of a conversion in parts that are done wholly or not at all: each copy, and each group. */
import { basename } from 'node:path';
import { floatBytes } from '../../src/checkpoint/dtype.js';
import type { StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type ConversionPlan, type Copy, copyBytes, expertPlaces } from '../../src/conversion/conversion-plan.js';
import { type GroupPlan, groupLabel, nativeTensors } from '../../src/conversion/group-plan.js';
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
  // σ is of all the experts of a layer and projection, also where they are cut into groups.
  const ranges = new Map<string, ByteRange[]>();
  for (const group of plan.groups) {
    const key = layerPart(group);
    ranges.set(key, [...(ranges.get(key) ?? []), ...groupRanges(group, plan)]);
  }
  const groups = plan.groups.map((group) => ({
    id: groupLabel(group),
    parts: groupParts(group, plan),
    noted: true,
    sources: shardsOf(ranges.get(layerPart(group)) ?? []),
  }));
  return [...copies, ...groups];
}

const layerPart = ({ layer, projection }: GroupPlan): string => `${layer} ${projection}`;

const rangesOf = ({ data, scales, declaredShape }: StoredMatrix): ByteRange[] =>
  [data, scales, declaredShape].filter((range) => range !== undefined);

/** The experts; of a native source also their bases and coefficients. */
const groupRanges = ({ experts, names }: GroupPlan, { source }: ConversionPlan): ByteRange[] => [
  ...experts.flatMap(rangesOf),
  ...[names.bases, names.coefficients].flatMap((name) => source.tensors.get(name) ?? []),
];

function groupParts(group: GroupPlan, plan: ConversionPlan): Unit['parts'] {
  if (plan.format === 'mobe')
    return nativeTensors(group).map(({ name, bytes }) => ({ tensor: name, offset: 0, bytes }));
  const { rows, cols } = group.problem;
  return expertPlaces(group, plan).map((place) => ({ ...place, bytes: rows * cols * floatBytes(group.dtype) }));
}
