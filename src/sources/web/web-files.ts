/** Reads the files of a place on a server as if they were in a local folder. */
import { isHidden, isPlainPath } from '../../checkpoint/plain-path.js';
import { ReadError, SourceChangedError, UnsafePathError } from '../../errors.js';
import { inLanes } from '../../in-lanes.js';
import { type Files, LocalFiles, READ_BYTES } from '../files.js';
import { checkWhole } from './check-whole.js';
import { fetchRange, type Versions } from './fetch-range.js';
import type { Web } from './web.js';
import type { WebFile, WebListing, WebPlace } from './web-place.js';

/**
 * The beginning of a shard that is fetched with one request. A header has some 130 bytes for each tensor: that of a shard of
 * DeepSeek-V3 has 80 KB, of Qwen3-30B 170 KB.
 */
const HEAD_BYTES = 192 * 1024;
/** Beginnings that are fetched at a time. */
const HEADS_AT_ONCE = 8;

/**
 * The files of a place. They are named `<folder>/<path>`. Long reads become several requests at a time. Methods throw
 * `UnsafePathError` for a path that could leave the folder, and the errors of `fetchRange` and of the place.
 */
export function webFiles(folder: string, web: Web, place: WebPlace): Files {
  const local = new LocalFiles();
  const versions: Versions = new Map();
  /** Local copies that were made here. */
  const copies = new Map<WebFile, Promise<string>>();
  /** Beginnings of files, until `close`. */
  const heads = new Map<string, Promise<Uint8Array>>();
  const used = new Set<WebFile>();
  const nameOf = ({ path }: WebFile): string => `${folder}/${path}`;
  const checked = checkWhole(nameOf);
  let listing: Promise<Listing> | undefined;

  const listed = (): Promise<Listing> => {
    listing ??= open();
    return listing;
  };
  const open = async (): Promise<Listing> => {
    try {
      const found = await place.list();
      for (const [path, bytes] of found.read ?? []) heads.set(path, Promise.resolve(bytes));
      return indexed(folder, found);
    } catch (error) {
      listing = undefined; // a later call tries again
      throw error;
    }
  };
  const fileOf = async (name: string): Promise<WebFile> => {
    const found = (await listed()).byName.get(name);
    if (!found) throw new ReadError(name, 0, 'the server has no such file');
    return found;
  };
  const fetch = async (file: WebFile, position: number, target: Uint8Array): Promise<void> => {
    used.add(file);
    const name = nameOf(file);
    const starts: number[] = [];
    for (let done = 0; done < target.byteLength; done += READ_BYTES) starts.push(done);
    await inLanes(starts.length, starts, (done) =>
      fetchRange(web, place, versions, { file, name }, position + done, target.subarray(done, done + READ_BYTES)),
    );
  };
  const headOf = (file: WebFile): Promise<Uint8Array> => {
    let head = heads.get(file.path);
    if (!head) {
      const bytes = new Uint8Array(Math.min(HEAD_BYTES, file.bytes));
      head = fetch(file, 0, bytes).then(() => bytes);
      heads.set(file.path, head);
      head.catch(() => heads.delete(file.path)); // a later read tries again
    }
    return head;
  };

  const copyOf = (file: WebFile): Promise<string> | undefined => {
    let copy = copies.get(file);
    if (!copy) {
      copy = place.keep?.(file, (position, target) => fetch(file, position, target));
      if (copy) copies.set(file, copy);
      copy?.catch(() => copies.delete(file)); // a later read tries again
    }
    return copy;
  };

  const files: Files = {
    async list(below) {
      const prefix = below === folder ? '' : `${below.slice(folder.length + 1)}/`;
      return (await listed()).files
        .filter(({ path }) => path.startsWith(prefix))
        .map(({ path, bytes, version }) => ({ path: path.slice(prefix.length), bytes, modified: version }));
    },
    commit: async () => (await listed()).commit,
    size: async (name) => (await fileOf(name)).bytes,
    async readHeads(names) {
      await inLanes(HEADS_AT_ONCE, names, async (name) => {
        const file = await fileOf(name);
        if (file.local === undefined) await headOf(file);
      });
    },
    async read(name, position, target) {
      const file = await fileOf(name);
      if (file.local !== undefined) return local.read(file.local, position, target);
      if (position + target.byteLength > file.bytes) throw new ReadError(name, file.bytes, 'the file ends there');
      // The header of a shard is no reason to download it.
      const copy = heads.has(file.path) && position + target.byteLength <= HEAD_BYTES ? undefined : copyOf(file);
      if (copy) return local.read(await copy, position, target);
      await checked(file, position, target, async () => {
        const head = heads.get(file.path);
        const start = head ? (await head).subarray(position, position + target.byteLength) : new Uint8Array(0);
        target.set(start);
        if (start.byteLength < target.byteLength)
          await fetch(file, position + start.byteLength, target.subarray(start.byteLength));
      });
    },
    async readRange({ file, start, end }) {
      const bytes = new Uint8Array(end - start);
      await files.read(file, start, bytes);
      return bytes;
    },
    async checkUnchanged() {
      await local.checkUnchanged();
      if (!place.current) return;
      await inLanes(HEADS_AT_ONCE, used, async (file) => {
        const now = await place.current?.(file);
        if (now && (now.bytes !== file.bytes || now.version !== file.version))
          throw new SourceChangedError(nameOf(file), 'the server tells another version');
      });
    },
    async close() {
      heads.clear();
      web.client.close();
      await local.close();
    },
  };
  return files;
}

interface Listing extends WebListing {
  readonly byName: ReadonlyMap<string, WebFile>;
}

function indexed(folder: string, { files, ...rest }: WebListing): Listing {
  // The names become local paths. A server must not be able to choose where its files are written.
  for (const { path } of files) if (!isPlainPath(path)) throw new UnsafePathError(folder, path);
  const held = files.filter(({ path }) => !isHidden(path)).sort((a, b) => (a.path < b.path ? -1 : 1));
  return { ...rest, files: held, byName: new Map(held.map((file) => [`${folder}/${file.path}`, file])) };
}
