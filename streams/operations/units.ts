/** The work of a conversion in parts that are done wholly or not at all: each copy, and each group. */
import { floatBytes } from '../../src/checkpoint/dtype.js';
import { type ConversionPlan, type Copy, copyBytes, expertPlaces } from '../../src/conversion/conversion-plan.js';
import { type GroupPlan, groupLabel, nativeTensors } from '../../src/conversion/group-plan.js';
import { isNative } from '../../src/conversion/settings.js';
import type { Unit } from '../../src/output/unfinished-run.js';

export const copyId = ({ target, offset }: Copy): string => `copy ${offset}:${target}`;

/** A group is finished once its report was noted. */
export function conversionUnits(plan: ConversionPlan): Unit[] {
  const copies = plan.copies.map((copy) => {
    const { target: tensor, offset } = copy;
    return { id: copyId(copy), parts: [{ tensor, offset, bytes: copyBytes(copy) }], noted: false };
  });
  const groups = plan.groups.map((group) => ({ id: groupLabel(group), parts: groupParts(group, plan), noted: true }));
  return [...copies, ...groups];
}

function groupParts(group: GroupPlan, plan: ConversionPlan): Unit['parts'] {
  if (isNative(plan)) {
    const { shared, experts } = nativeTensors(group);
    return [...shared, ...experts.flat()].map(({ name, bytes }) => ({ tensor: name, offset: 0, bytes }));
  }
  const { rows, cols } = group.problem;
  return expertPlaces(group, plan).map((place) => ({ ...place, bytes: rows * cols * floatBytes(group.dtype) }));
}
