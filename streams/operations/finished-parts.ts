/** Keeps the results of finished parts of a measurement in small files, so that a later call goes on from them. */
import { createHash } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { nodeFileSystem, readWhole, syncFolder, writeSynced } from '../../src/file-system.js';
import { checkSeal, seal } from '../../src/output/seal.js';
import { asWriteError } from '../../src/output/shard-writer.js';

/** Far more than the results of a part take. */
const MAX_FILE_BYTES = 2 ** 20;

const partSchema = z.looseObject({ identity: z.string(), values: z.record(z.string(), z.number()) });

/** The results of a part by name. */
export type PartValues = Readonly<Record<string, number>>;

/** The parts of one measurement. */
export interface FinishedParts {
  /** The results of a part; undefined if it is not finished, or its file is damaged or of another measurement. */
  find(part: string): Promise<PartValues | undefined>;
  /** Throws a `WriteError`. */
  keep(part: string, values: PartValues): Promise<void>;
}

/**
 * Opens the folder, and makes it if there is none.
 * @param folder undefined: nothing is kept
 * @param identity everything that decides the results, as JSON
 */
export async function openParts(folder: string | undefined, identity: unknown): Promise<FinishedParts> {
  if (folder === undefined) return { find: async () => undefined, keep: async () => {} };
  await mkdir(folder, { recursive: true }).catch((error) => {
    throw asWriteError(folder, error);
  });
  const fs = nodeFileSystem;
  const digest = createHash('sha256').update(JSON.stringify(identity)).digest('hex');
  return {
    async find(part) {
      const bytes = await readWhole(fs, join(folder, fileName(part)), MAX_FILE_BYTES).catch(() => undefined);
      if (!bytes || checkSeal(bytes) !== 'sound') return undefined;
      const { success, data } = partSchema.safeParse(JSON.parse(new TextDecoder().decode(bytes)));
      return success && data.identity === digest ? data.values : undefined;
    },
    async keep(part, values) {
      const path = join(folder, fileName(part));
      const text = seal(JSON.stringify({ identity: digest, values }, null, 2));
      try {
        await writeSynced(fs, `${path}.new`, [new TextEncoder().encode(text)]);
        await fs.rename(`${path}.new`, path);
        await syncFolder(folder, fs);
      } catch (error) {
        throw asWriteError(path, error);
      }
    },
  };
}

const fileName = (part: string): string => `${part}.json`;
