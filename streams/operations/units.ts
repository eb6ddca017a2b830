/** The units of a conversion: each copy, and each group or the groups with common slices. A unit is finished completely or not at all. */
import { basename } from 'node:path';
import type { StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type ConversionPlan, type Copy, copyBytes, decodedMatrices } from '../../src/conversion/conversion-plan.js';
import { groupPlaces, groupUnits } from '../../src/conversion/group-places.js';
import { type GroupKey, type GroupPlan, groupLabel, projectionKey } from '../../src/conversion/group-plan.js';
import type { Unit } from '../../src/output/unfinished-run.js';
import type { ByteRange } from '../../src/sources/files.js';

/** The name of a copy's unit. */
export const copyId = ({ target, offset }: Copy): string => `copy ${offset}:${target}`;

/**
 * The units of a conversion, with their parts of output tensors and the source shards that they depend on. A unit of
 * groups is finished when their reports are noted.
 */
export function conversionUnits(plan: ConversionPlan): Unit[] {
  const shards = new Map(plan.source.shards.map(({ path }) => [path, basename(path)]));
  const shardsOf = (ranges: readonly ByteRange[]): string[] => [
    ...new Set(ranges.flatMap(({ file }) => shards.get(file) ?? [])),
  ];
  const copies = plan.copies.map((copy) => {
    const { target: tensor, offset, source } = copy;
    const sources = shardsOf([source, ...decodedMatrices(copy).flatMap(rangesOf)]);
    return { id: copyId(copy), parts: [{ tensor, offset, bytes: copyBytes(copy) }], noted: false, sources };
  });
  // σ depends on all experts of a layer and projection, so each of its groups depends on the shards of all of them.
  const ranges = new Map<string, ByteRange[]>();
  for (const group of plan.groups) {
    const key = projectionKey(group);
    ranges.set(key, [...(ranges.get(key) ?? []), ...groupRanges(group, plan)]);
  }
  const groups = groupUnits(plan.groups, plan).map((unit) => {
    const places = unit.map((group) => groupPlaces(group, plan));
    const parts = places.flatMap(({ shared, experts }) => [...shared, ...experts.flat()]);
    return {
      id: unitId(unit),
      // Groups of one unit have slices in common.
      parts: [
        ...new Map(
          parts.map(({ tensor, offset, bytes }) => [`${offset}:${tensor}`, { tensor, offset, bytes }]),
        ).values(),
      ],
      noted: true,
      sources: shardsOf([
        ...unit.flatMap((group) => ranges.get(projectionKey(group)) ?? []),
        ...unit.flatMap(({ slices = [] }) => slices.flatMap(({ matrices }) => matrices.flatMap(rangesOf))),
      ]),
    };
  });
  return [...copies, ...groups];
}

/** The name of the unit of some groups. Its note has the report of each. */
export const unitId = (groups: readonly GroupKey[]): string => groups.map(groupLabel).join(', ');

const rangesOf = ({ data, scales, besides = [], declaredShape }: StoredMatrix): ByteRange[] =>
  [data, scales, ...besides, declaredShape].filter((range) => range !== undefined);

/** The ranges of a group's experts, and in a native source also of its shared factors. */
const groupRanges = ({ experts, names }: GroupPlan, { source }: ConversionPlan): ByteRange[] => [
  ...experts.flatMap(rangesOf),
  ...Object.values(names.shared).flatMap((name) => source.tensors.get(name) ?? []),
];
