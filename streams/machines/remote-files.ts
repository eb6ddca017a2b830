/** Reads the files of a checkpoint that another machine serves (serve.ts), as if they were in a local folder. */
import { isHidden, isPlainPath } from '../../src/checkpoint/plain-path.js';
import { ReadError, RemoteChangedError, UnsafePathError } from '../../src/errors.js';
import { publicLocation } from '../../src/location.js';
import type { ByteRange, FileEntry, Files } from '../../src/sources/files.js';
import { registerSource, type SourceOptions } from '../../src/sources/open-source.js';
import { connectFiles, type FileInfo, type RemoteFiles } from '../../src/transport/served-files.js';

// Importing `openSource` from here ensures that `ws` and `wss` are registered.
export { openFiles, openSource, type Source } from '../../src/sources/open-source.js';

for (const scheme of ['ws', 'wss']) registerSource(scheme, remoteFiles);

/**
 * The files at `url`. Connects at the first use, and again after `close`. Methods throw a `PeerError` if the peer fails,
 * `UnsafePathError` if it lists a path that could leave the folder, and `RemoteChangedError` if its files have changed.
 */
export function remoteFiles(url: string, { peers = {} }: SourceOptions): Files {
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
  const relative = (file: string): string => file.slice(publicLocation(url).length + 1);
  /** The files, or the links to missing files, sorted by path. Hidden ones are left out, as in a local folder. */
  const entries = async (dangling: boolean): Promise<FileEntry[]> => {
    const all = (await (await connected()).list()).filter(({ file }) => !isHidden(file));
    // The names become local paths. A peer must not be able to choose where its files are written.
    for (const { file } of all) if (!isPlainPath(file)) throw new UnsafePathError(url, file);
    return all
      .filter((it) => (it.dangling ?? false) === dangling)
      .map(({ file, bytes, modified }) => ({ path: file, bytes, modified }))
      .sort((a, b) => (a.path < b.path ? -1 : 1));
  };
  const files: Files = {
    list: () => entries(false),
    dangling: async () => (await entries(true)).map(({ path }) => path),
    async size(file) {
      const info = (await (await connected()).list()).find((it) => it.file === relative(file));
      if (!info) throw new ReadError(file, 0, 'it is not served');
      return info.bytes;
    },
    async read(file, position, target) {
      await (await connected()).read(relative(file), position, target);
    },
    async readRange({ file, start, end }: ByteRange) {
      const bytes = new Uint8Array(end - start);
      await files.read(file, start, bytes);
      return bytes;
    },
    // The list is compared at every new connection, and the server checks its own files.
    checkUnchanged: async () => {},
    async close() {
      const open = connection;
      connection = undefined;
      await open?.then((remote) => remote.close()).catch(() => {});
    },
  };
  return files;
}
