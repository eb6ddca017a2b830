/**
 * Slices of a fit: processes that know nothing of each other, such as the tasks of a job array, each fit some of the groups into
 * one folder. Every slice leaves a list of all slices there, so that missing ones are noticed.
 */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { readJsonObject } from '../checkpoint/open-checkpoint.js';
import { MissingSlicesError, NotACheckpointError } from '../errors.js';
import { fileIn } from '../location.js';
import type { SourceFolder } from '../sources/files.js';

/** The `index`-th of `count` slices, counted from 0. */
export interface FitSlice {
  readonly index: number;
  readonly count: number;
}

export const sliceLabel = ({ index, count }: FitSlice): string => `${index}/${count}`;

/** Groups that one process must fit: whole layers if down_proj is repaired with the finished factors of its layer. */
export function fitUnits<Group extends { readonly layer: number }>(
  groups: readonly Group[],
  wholeLayers: boolean,
): Group[][] {
  if (!wholeLayers) return groups.map((group) => [group]);
  const layers = new Map<number, Group[]>();
  for (const group of groups) layers.set(group.layer, [...(layers.get(group.layer) ?? []), group]);
  return [...layers.values()];
}

/** The groups of a slice. Neighbouring units go to different slices, because layers of one model can differ in size. */
export const groupsOfSlice = <Group>(units: readonly Group[][], { index, count }: FitSlice): Group[] =>
  units.filter((_, unit) => unit % count === index).flat();

const LIST_NAME = /^slices-[0-9a-f]{12}\.json$/;

/** Whether a file name is that of a list of slices. */
export const isSlicesFile = (name: string): boolean => LIST_NAME.test(name);

const listSchema = z.strictObject({ slices: z.array(z.array(z.string())) });

/**
 * The list of all slices. All slices of a fit write the same one.
 * @param units the names of the factor files of each unit
 */
export function encodeSlices(units: readonly string[][], count: number): { file: string; text: string } {
  const slices = Array.from({ length: count }, (_, index) => groupsOfSlice(units, { index, count }));
  const text = `${JSON.stringify({ slices }, null, 1)}\n`;
  return { file: `slices-${createHash('sha256').update(text).digest('hex').slice(0, 12)}.json`, text };
}

/**
 * Throws `MissingSlicesError` if a factor file is missing that a list of slices names, and `NotACheckpointError` if a list cannot
 * be read.
 * @param names of the files in the folder
 */
export async function checkSlices({ folder, files }: SourceFolder, names: readonly string[]): Promise<void> {
  const held = new Set(names);
  for (const name of names.filter(isSlicesFile)) {
    const { success, data } = listSchema.safeParse(await readJsonObject(fileIn(folder, name), files));
    if (!success)
      throw new NotACheckpointError(folder, `its ${name} is damaged: fit any slice again, which rewrites it`);
    const missing = data.slices.flatMap((all, index) => {
      const left = all.filter((file) => !held.has(file));
      return left.length ? [{ slice: sliceLabel({ index, count: data.slices.length }), files: left }] : [];
    });
    if (missing.length) throw new MissingSlicesError(folder, missing, data.slices.flat().length);
  }
}
