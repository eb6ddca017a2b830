import type { Files } from './files.js';

/** Files whose reader is made at the first use. */
export function lazyFiles(open: () => Promise<Files>): Files {
  let opened: Promise<Files> | undefined;
  const files = (): Promise<Files> => {
    opened ??= open().catch((error) => {
      opened = undefined; // a later call tries again
      throw error;
    });
    return opened;
  };
  return {
    list: async (folder) => (await files()).list(folder),
    commit: async (folder) => (await files()).commit?.(folder),
    readHeads: async (names) => (await files()).readHeads?.(names),
    size: async (file) => (await files()).size(file),
    read: async (file, position, target) => (await files()).read(file, position, target),
    readRange: async (range) => (await files()).readRange(range),
    checkUnchanged: async () => (await opened)?.checkUnchanged(),
    close: async () => (await opened?.catch(() => undefined))?.close(),
  };
}
