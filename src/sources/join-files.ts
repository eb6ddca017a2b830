import { ReadError } from '../errors.js';
import type { Files, SourceFolder } from './files.js';

/** One reader for the files of several folders, for example a checkpoint on another machine and factors in a local folder. */
export function joinFiles(...folders: readonly SourceFolder[]): Files {
  const innermostFirst = [...folders].sort((a, b) => b.folder.length - a.folder.length);
  const filesOf = (path: string): Files => {
    const found = innermostFirst.find(({ folder }) => path === folder || isBelow(folder, path));
    if (!found) throw new ReadError(path, 0, 'it is in none of the folders of this run');
    return found.files;
  };
  const all = [...new Set(folders.map(({ files }) => files))];
  return {
    list: async (folder) => filesOf(folder).list(folder),
    dangling: async (folder) => (await filesOf(folder).dangling?.(folder)) ?? [],
    commit: async (folder) => filesOf(folder).commit?.(folder),
    size: async (file) => filesOf(file).size(file),
    read: async (file, position, target) => filesOf(file).read(file, position, target),
    readRange: async (range) => filesOf(range.file).readRange(range),
    async checkUnchanged() {
      for (const files of all) await files.checkUnchanged();
    },
    async close() {
      await Promise.all(all.map((files) => files.close()));
    },
  };
}

const isBelow = (folder: string, path: string): boolean =>
  path.startsWith(folder) && /^[/\\]/.test(path.slice(folder.length));
