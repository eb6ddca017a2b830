/**
 * The cache of huggingface_hub: `models--org--name/{refs,snapshots,blobs}`. A blob is a file under the name of its content; a
 * snapshot has links to the blobs of a commit; a ref has the commit of a branch or tag.
 */
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { DamagedDownloadError } from '../../errors.js';
import { nodeFileSystem, type OpenFile, writeAll } from '../../file-system.js';
import { inLanes } from '../../in-lanes.js';
import { checkDisk } from '../../output/folder-checks.js';
import { asWriteError } from '../../output/shard-writer.js';
import { LocalFiles, READ_BYTES } from '../files.js';
import type { Fetch, WebFile } from '../web/web-place.js';
import type { HubLocation } from './hub-location.js';

/** Blocks of a file that are fetched or written at a time. */
const BLOCKS_AT_ONCE = 4;

export const COMMIT = /^[0-9a-f]{40}$/;

const repoFolder = (cache: string, repo: string): string => join(cache, `models--${repo.replace('/', '--')}`);

const snapshot = (cache: string, { repo, below }: HubLocation, commit: string): string =>
  join(repoFolder(cache, repo), 'snapshots', commit, below);

/** The commit that a revision had at the last download; undefined if the cache does not know. */
export async function cachedCommit(cache: string, { repo, revision }: HubLocation): Promise<string | undefined> {
  if (COMMIT.test(revision)) return revision;
  const text = await readFile(join(repoFolder(cache, repo), 'refs', revision), 'utf8').catch(() => '');
  return COMMIT.test(text.trim()) ? text.trim() : undefined;
}

/** The files of a commit that the cache holds. */
export async function cachedFiles(cache: string, location: HubLocation, commit: string): Promise<WebFile[]> {
  const folder = snapshot(cache, location, commit);
  const held = await new LocalFiles().list(folder).catch(() => []);
  return held.map(({ path, bytes }) => ({ path, bytes, version: 0, local: join(folder, path) }));
}

/** The files of a commit, with the local copies that the cache holds of them. */
export async function withLocalCopies(
  cache: string,
  location: HubLocation,
  commit: string,
  files: readonly WebFile[],
): Promise<WebFile[]> {
  const folder = snapshot(cache, location, commit);
  const found = new Map<string, string>();
  if (await stat(folder).catch(() => undefined))
    await inLanes(16, files, async ({ path, bytes }) => {
      const local = join(folder, path);
      // A snapshot has links to finished downloads only.
      if ((await stat(local).catch(() => undefined))?.size === bytes) found.set(path, local);
    });
  return files.map((file) => ({ ...file, local: found.get(file.path) }));
}

/** Notes the commit that a branch or tag has now. */
export async function noteCommit(cache: string, { repo, revision }: HubLocation, commit: string): Promise<void> {
  if (COMMIT.test(revision)) return;
  const file = join(repoFolder(cache, repo), 'refs', revision);
  await cached(file, async () => {
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, commit);
  });
}

/**
 * Downloads a file into the cache and returns its path. Its content is compared with its name: the SHA-256 of a large file, the hash
 * of git of a small one. The file appears only when it is whole. Throws `DamagedDownloadError`, `DiskTooSmallError`, `WriteError`.
 * @param blob the name of the content
 */
export async function keepFile(
  cache: string,
  location: HubLocation,
  commit: string,
  file: WebFile,
  blob: string,
  fetch: Fetch,
): Promise<string> {
  const folder = repoFolder(cache, location.repo);
  const path = join(folder, 'blobs', blob);
  const link = join(snapshot(cache, location, commit), file.path);
  if ((await stat(path).catch(() => undefined))?.size !== file.bytes) {
    await checkDisk(folder, file.bytes);
    // Several programs may download the same file, so each has a name of its own.
    const temporary = `${path}.${randomBytes(4).toString('hex')}.incomplete`;
    try {
      await cached(temporary, () => mkdir(dirname(path), { recursive: true }));
      const found = await cached(temporary, () => download(temporary, file, fetch));
      if (found !== blob) throw new DamagedDownloadError(`${location.location}/${file.path}`, blob, found);
      await cached(path, () => nodeFileSystem.rename(temporary, path));
    } finally {
      await rm(temporary, { force: true });
    }
  }
  await cached(link, async () => {
    await mkdir(dirname(link), { recursive: true });
    await rm(link, { force: true });
    await symlink(relative(dirname(link), path), link);
  });
  return link;
}

/** Writes a file in order while it is fetched, and returns its hash. */
async function download(path: string, { bytes, sha256 }: WebFile, fetch: Fetch): Promise<string> {
  const hash = sha256 === undefined ? createHash('sha1').update(`blob ${bytes}\0`) : createHash('sha256');
  const target: OpenFile = await nodeFileSystem.open(path, 'w');
  try {
    const starts = Array.from({ length: Math.ceil(bytes / READ_BYTES) }, (_, i) => i * READ_BYTES);
    let last: Promise<unknown> = Promise.resolve();
    await inLanes(BLOCKS_AT_ONCE, starts, async (start) => {
      const block = new Uint8Array(Math.min(READ_BYTES, bytes - start));
      const before = last;
      const written = Promise.all([fetch(start, block), before]).then(async () => {
        hash.update(block);
        await writeAll(target, block, start);
      });
      last = written;
      await written;
    });
    await target.sync();
    return hash.digest('hex');
  } finally {
    await target.close();
  }
}

/** Runs an operation on the cache. Errors of the system become a `WriteError` for `path`. */
async function cached<T>(path: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    throw (error as NodeJS.ErrnoException).syscall === undefined ? error : asWriteError(path, error);
  }
}
