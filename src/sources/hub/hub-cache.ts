/** The cache of huggingface_hub: `models--org--name/{refs,snapshots,blobs}`. It is only read. */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { inLanes } from '../../in-lanes.js';
import { LocalFiles } from '../files.js';
import type { WebFile } from '../web/web-place.js';
import type { HubLocation } from './hub-location.js';

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
