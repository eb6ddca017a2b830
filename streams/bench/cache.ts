/** Removes files from the page cache, or reads them into it. */
import { execFile } from 'node:child_process';
import { createReadStream } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { BLOCK_BYTES, type SampleOfModel } from './task.js';

const execute = promisify(execFile);

/** A way to remove files from the page cache. Node has no `posix_fadvise`. */
export interface CacheDropper {
  readonly how: string;
  drop(source: SampleOfModel): Promise<void>;
}

const filesOf = ({ folder, shards }: SampleOfModel): string[] => shards.map((shard) => join(folder, shard));

/** A way that works here; undefined if there is none. Then only warm reads are measured. */
export async function findCacheDropper(source: SampleOfModel): Promise<CacheDropper | undefined> {
  for (const dropper of DROPPERS) {
    try {
      await dropper.drop(source);
      if ((await cachedShare(source)) <= DROPPED_SHARE) return dropper;
    } catch {
      // The next way is tried.
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

/** Share of pages that may remain: some come back at once, at the end of a file or because another process reads them. */
const DROPPED_SHARE = 0.05;

/** Share of the files that is cached, by util-linux's `fincore`. Throws if that is missing: a cache that cannot be checked is not called cold. */
async function cachedShare(source: SampleOfModel): Promise<number> {
  const { stdout } = await execute('fincore', ['--bytes', '--noheadings', '--output', 'RES', ...filesOf(source)]);
  const resident = stdout
    .trim()
    .split(/\s+/)
    .reduce((sum, bytes) => sum + Number(bytes), 0);
  return resident / source.bytes;
}

/** Reads all files once, so that they are in the page cache. */
export async function warm(source: SampleOfModel): Promise<void> {
  for (const file of filesOf(source)) for await (const _ of createReadStream(file, { highWaterMark: BLOCK_BYTES }));
}

/** Waits until written data is on the disk, so that one measurement does not wait for another's data. */
export async function settle(folder: string): Promise<void> {
  await execute('sync', ['--file-system', folder]).catch(() => {}); // some systems lack it; their figures then spread more
}
