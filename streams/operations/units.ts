/** The work of a conversion in parts that are done wholly or not at all: each copy, and each group. */
import { type ConversionPlan, type Copy, copyBytes } from '../../src/conversion/conversion-plan.js';
import { groupPlaces } from '../../src/conversion/group-places.js';
import { groupLabel } from '../../src/conversion/group-plan.js';
import type { Unit } from '../../src/output/unfinished-run.js';

export const copyId = ({ target, offset }: Copy): string => `copy ${offset}:${target}`;

/** A group is finished once its report was noted. */
export function conversionUnits(plan: ConversionPlan): Unit[] {
  const copies = plan.copies.map((copy) => {
    const { target: tensor, offset } = copy;
    return { id: copyId(copy), parts: [{ tensor, offset, bytes: copyBytes(copy) }], noted: false };
  });
  const groups = plan.groups.map((group) => {
    const { shared, experts } = groupPlaces(group, plan);
    const parts = [...shared, ...experts.flat()].map(({ tensor, offset, bytes }) => ({ tensor, offset, bytes }));
    return { id: groupLabel(group), parts, noted: true };
  });
  return [...copies, ...groups];
}
