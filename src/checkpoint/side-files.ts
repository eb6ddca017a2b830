import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { CONFIG_FILE, INDEX_FILE } from './open-checkpoint.js';

/** Weights in other formats would describe the uncompressed model. */
const OTHER_WEIGHTS = /\.(safetensors|bin|pth|pt|ckpt|gguf|onnx|h5|msgpack)$|\.index\.json$/;

/** Written anew for every result; see src/conversion/report.ts and model-card.ts. */
export const REPORT_FILE = 'mobe.json';
export const CARD_FILE = 'README.md';
const SOURCE_CARD_FILE = 'README.source.md';

export interface SideFile {
  /** Relative to the source folder. */
  readonly source: string;
  /** Relative to the output folder. */
  readonly target: string;
}

/**
 * What a checkpoint holds beside weights, index and config: tokenizer, generation settings, remote code, templates,
 * licence. Hidden files are left behind (download caches, version control). A source's README is kept under another name,
 * unless it is the card of a result of ours, which a new one replaces.
 */
export async function listSideFiles(folder: string): Promise<SideFile[]> {
  const files: string[] = [];
  const visit = async (below: string): Promise<void> => {
    for (const name of (await readdir(join(folder, below))).sort()) {
      const path = below ? `${below}/${name}` : name;
      if (name.startsWith('.') || path === CONFIG_FILE || path === INDEX_FILE || OTHER_WEIGHTS.test(name)) continue;
      // Followed: download caches store files as symbolic links to blobs. A dangling one is no file.
      const entry = await stat(join(folder, path)).catch(() => undefined);
      if (entry?.isDirectory()) await visit(path);
      else if (entry?.isFile()) files.push(path);
    }
  };
  await visit('');
  const ours = files.includes(REPORT_FILE);
  return files
    .filter((file) => file !== REPORT_FILE && !(ours && file === CARD_FILE))
    .map((source) => ({ source, target: source === CARD_FILE ? SOURCE_CARD_FILE : source }));
}
