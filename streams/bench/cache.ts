/** Files out of the page cache, and into it. */
import { execFile } from 'node:child_process';
import { createReadStream } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { BLOCK_BYTES, type SampleOfModel } from './task.js';

const execute = promisify(execFile);

/** How files can be forgotten here. Node has no `posix_fadvise`. */
export interface CacheDropper {
  readonly how: string;
  drop(source: SampleOfModel): Promise<void>;
}

const filesOf = ({ folder, shards }: SampleOfModel): string[] => shards.map((shard) => join(folder, shard));

/** Undefined where the cache cannot be emptied: then only warm reads are measured. */
export async function findCacheDropper(source: SampleOfModel): Promise<CacheDropper | undefined> {
  for (const dropper of DROPPERS) {
    try {
      await dropper.drop(source);
      if ((await cachedShare(source)) <= DROPPED_SHARE) return dropper;
    } catch {
      // the next one
    }
  }
  return undefined;
}

const DROPPERS: readonly CacheDropper[] = [
  {
    how: 'posix_fadvise(DONTNEED), by dd iflag=nocache',
    async drop(source) {
      for (const file of filesOf(source))
        await execute('dd', [`if=${file}`, 'iflag=nocache', 'count=0', 'status=none']);
    },
  },
  {
    how: '/proc/sys/vm/drop_caches',
    drop: () => writeFile('/proc/sys/vm/drop_caches', '1\n'),
  },
];

/** Some pages come back at once: of the file's end, and of what another process reads. */
const DROPPED_SHARE = 0.05;

/** By util-linux's `fincore`. Throws where that is not installed: what cannot be checked is not called cold. */
async function cachedShare(source: SampleOfModel): Promise<number> {
  const { stdout } = await execute('fincore', ['--bytes', '--noheadings', '--output', 'RES', ...filesOf(source)]);
  const resident = stdout
    .trim()
    .split(/\s+/)
    .reduce((sum, bytes) => sum + Number(bytes), 0);
  return resident / source.bytes;
}

/** Reads everything once. */
export async function warm(source: SampleOfModel): Promise<void> {
  for (const file of filesOf(source)) for await (const _ of createReadStream(file, { highWaterMark: BLOCK_BYTES }));
}

/** Lets what was written reach the disk, so that one measurement does not wait for another's. */
export async function settle(folder: string): Promise<void> {
  await execute('sync', ['--file-system', folder]).catch(() => {}); // not on every system; then the spread shows it
}
