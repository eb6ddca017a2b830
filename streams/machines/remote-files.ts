/** The files of a checkpoint that another machine serves (serve.ts), as if they were in a folder here. */

import { type Checkpoint, openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { isHidden, isPlainPath } from '../../src/checkpoint/plain-path.js';
import { ReadError, RemoteChangedError, UnsafePathError } from '../../src/errors.js';
import type { FileSystem } from '../../src/file-system.js';
import { type ByteRange, type FileEntry, type Files, isRemote, LocalFiles } from '../../src/sources/files.js';
import { connectFiles, type FileInfo, type RemoteFiles } from '../../src/transport/served-files.js';
import type { PeerOptions } from './peer-options.js';

/** Opens a checkpoint: a folder of this machine, or `ws://host:port/`. */
export const openSource = (location: string, peers: PeerOptions = {}, fs?: FileSystem): Promise<Checkpoint> =>
  openCheckpoint(location, openFiles(location, peers, fs));

/** What reads the files of a folder, here or served. */
export const openFiles = (location: string, peers: PeerOptions = {}, fs?: FileSystem): Files =>
  isRemote(location) ? remoteFiles(location, peers) : new LocalFiles(fs);

/**
 * Connects at the first use, and again after `close`. Files elsewhere than at `url` are read here, so that one reader serves a run
 * that needs both.
 */
export function remoteFiles(url: string, peers: PeerOptions): Files {
  const local = new LocalFiles();
  let connection: Promise<RemoteFiles> | undefined;
  let known: readonly FileInfo[] | undefined;
  const open = async (): Promise<RemoteFiles> => {
    const remote = await connectFiles(url, peers);
    const held = await remote.list();
    if (known && JSON.stringify(known) !== JSON.stringify(held)) throw new RemoteChangedError(url);
    known = held;
    return remote;
  };
  const connected = (): Promise<RemoteFiles> => {
    connection ??= open();
    return connection;
  };
  const relative = (file: string): string => file.slice(file.indexOf('/', file.indexOf('//') + 2) + 1);
  const files: Files = {
    async list(folder): Promise<FileEntry[]> {
      if (!isRemote(folder)) return local.list(folder);
      // As in a folder here, where hidden files are not listed.
      const held = (await (await connected()).list()).filter(({ file }) => !isHidden(file));
      // The names become paths: a peer must not choose where in this machine its files end up.
      for (const { file } of held) if (!isPlainPath(file)) throw new UnsafePathError(url, file);
      return held.map(({ file, ...rest }) => ({ path: file, ...rest })).sort((a, b) => (a.path < b.path ? -1 : 1));
    },
    async size(file) {
      if (!isRemote(file)) return local.size(file);
      const info = (await (await connected()).list()).find((it) => it.file === relative(file));
      if (!info) throw new ReadError(file, 0, 'it is not served');
      return info.bytes;
    },
    async read(file, position, target) {
      if (!isRemote(file)) return local.read(file, position, target);
      await (await connected()).read(relative(file), position, target);
    },
    async readRange({ file, start, end }: ByteRange) {
      const bytes = new Uint8Array(end - start);
      await files.read(file, start, bytes);
      return bytes;
    },
    // What is served is compared at every new connection, and its server compares its files.
    checkUnchanged: () => local.checkUnchanged(),
    async close() {
      const open = connection;
      connection = undefined;
      await Promise.all([local.close(), open?.then((remote) => remote.close()).catch(() => {})]);
    },
  };
  return files;
}
