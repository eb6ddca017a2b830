/** Reads the gate and up matrices of the trained fixture, and writes copies of it with changed ones. */
import { cpSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { encodeFinite } from '../../src/checkpoint/codec.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { detectModel } from '../../src/models/detect.js';
import { DEFAULT_PROJECTIONS, type Projection } from '../../src/models/family.js';
import { decodeExperts } from '../subjects.js';
import type { Experts } from './rivals.js';

/** The experts of one layer and projection, and their places in the checkpoint. */
export interface Group extends Experts {
  readonly stored: readonly StoredMatrix[];
}

/** All groups: for each layer those of each projection. */
export async function readGroups(
  folder = TINY_MODEL,
  projections: readonly Projection[] = DEFAULT_PROJECTIONS,
): Promise<Group[]> {
  const { layers } = detectModel(await openCheckpoint(folder));
  const matrices = layers.flatMap(({ experts }) => projections.map((projection) => experts[projection]));
  return Promise.all(
    matrices.map(async (stored) => {
      const { rows, cols } = stored[0] as StoredMatrix;
      return { rows, cols, stored, experts: await decodeExperts(stored) };
    }),
  );
}

/**
 * Writes a copy of the fixture.
 * @param change returns the experts to write; they are stored in the fixture's dtype
 */
export async function writeCopy(
  folder: string,
  change: (group: Group, index: number) => readonly Float32Array[],
): Promise<void> {
  cpSync(TINY_MODEL, folder, { recursive: true });
  const files = new Map<string, FileHandle>();
  try {
    for (const [index, group] of (await readGroups(folder)).entries()) {
      const experts = change(group, index);
      for (const [i, { name, encoding, data }] of group.stored.entries()) {
        if (encoding.kind !== 'float') throw new TypeError(`${name} is quantised`);
        const file = files.get(data.file) ?? (await open(data.file, 'r+'));
        files.set(data.file, file);
        await file.write(encodeFinite(encoding.dtype, experts[i] as Float32Array, name), 0, undefined, data.start);
      }
    }
  } finally {
    for (const file of files.values()) await file.close();
  }
}
