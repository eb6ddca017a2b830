/** The files of a checkpoint that another machine serves (serve.ts), as if they were in a folder here. */
import { isHidden, isPlainPath } from '../../src/checkpoint/plain-path.js';
import { ReadError, RemoteChangedError, UnsafePathError } from '../../src/errors.js';
import type { ByteRange, FileEntry, Files } from '../../src/sources/files.js';
import { registerSource, type SourceOptions } from '../../src/sources/open-source.js';
import { connectFiles, type FileInfo, type RemoteFiles } from '../../src/transport/served-files.js';

// Importing them from here makes sure that these schemes are known.
export { openFiles, openSource, type Source } from '../../src/sources/open-source.js';

for (const scheme of ['ws', 'wss']) registerSource(scheme, remoteFiles);

/** Connects at the first use, and again after `close`. */
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
  const relative = (file: string): string => file.slice(url.length + 1);
  const files: Files = {
    async list(): Promise<FileEntry[]> {
      // As in a folder here, where hidden files are not listed.
      const held = (await (await connected()).list()).filter(({ file }) => !isHidden(file));
      // The names become paths: a peer must not choose where in this machine its files end up.
      for (const { file } of held) if (!isPlainPath(file)) throw new UnsafePathError(url, file);
      return held.map(({ file, ...rest }) => ({ path: file, ...rest })).sort((a, b) => (a.path < b.path ? -1 : 1));
    },
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
    // What is served is compared at every new connection, and its server compares its files.
    checkUnchanged: async () => {},
    async close() {
      const open = connection;
      connection = undefined;
      await open?.then((remote) => remote.close()).catch(() => {});
    },
  };
  return files;
}
