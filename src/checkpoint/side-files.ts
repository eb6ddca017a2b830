import { UnsafePathError } from '../errors.js';
import { fileIn } from '../location.js';
import { MANIFEST_FILE } from '../output/manifest.js';
import { type Checkpoint, CONFIG_FILE, INDEX_FILE } from './open-checkpoint.js';
import { isPlainPath } from './plain-path.js';

/** Weights in other formats would describe the uncompressed model. */
const OTHER_WEIGHTS = /\.(safetensors|bin|pth|pt|ckpt|gguf|onnx|h5|msgpack)$|\.index\.json$/;

/** Written anew for every result; see src/conversion/run-report.ts and model-card.ts. */
export const REPORT_FILE = 'mobe.json';
export const CARD_FILE = 'README.md';
/** Of `mobe report`. Like the record it has timings, and no manifest lists it. */
export const PAGE_FILE = 'mobe.report.html';
/** With what a process that was killed as it wrote the page has left. */
export const PAGE_FILES: readonly string[] = [PAGE_FILE, `${PAGE_FILE}.new`];
const SOURCE_CARD_FILE = 'README.source.md';

export interface SideFile {
  /** Path or URL. */
  readonly source: string;
  /** Relative to the output folder. */
  readonly target: string;
  readonly bytes: number;
}

/**
 * What a checkpoint holds beside weights, index and config: tokenizer, generation settings, remote code, templates,
 * licence. Hidden files are left behind (download caches, version control). A source's README is kept under another name,
 * unless it is the card of a result of ours, which a new one replaces. Throws `UnsafePathError` for a name that leads elsewhere.
 */
export async function listSideFiles({ folder, files }: Pick<Checkpoint, 'folder' | 'files'>): Promise<SideFile[]> {
  const held = (await files.list(folder)).filter(
    ({ path }) => ![CONFIG_FILE, INDEX_FILE, MANIFEST_FILE, ...PAGE_FILES].includes(path) && !OTHER_WEIGHTS.test(path),
  );
  // A peer's may be anything, and a folder's what another system takes for a path.
  for (const { path } of held) if (!isPlainPath(path)) throw new UnsafePathError(folder, path);
  const ours = held.some(({ path }) => path === REPORT_FILE);
  return held
    .filter(({ path }) => path !== REPORT_FILE && !(ours && path === CARD_FILE))
    .map(({ path, bytes }) => ({
      source: fileIn(folder, path),
      target: path === CARD_FILE ? SOURCE_CARD_FILE : path,
      bytes,
    }));
}
