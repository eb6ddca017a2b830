import { UnsafePathError } from '../errors.js';
import { fileIn } from '../location.js';
import { MANIFEST_FILE } from '../output/manifest.js';
import { type Checkpoint, CONFIG_FILE, INDEX_FILE } from './open-checkpoint.js';
import { isPlainPath } from './plain-path.js';

/** Weights in other formats. They are of the uncompressed model, so they are not copied. */
const OTHER_WEIGHTS = /\.(safetensors|bin|pth|pt|ckpt|gguf|onnx|h5|msgpack)$|\.index\.json$/;

/** The record and the model card of a result; see src/conversion/run-report.ts and model-card.ts. */
export const REPORT_FILE = 'mobe.json';
export const CARD_FILE = 'README.md';
/** The page of `mobe report`. Like the record it has timings, so no manifest lists it. */
export const PAGE_FILE = 'mobe.report.html';
/** The page, and the incomplete file that a killed process may leave. */
export const PAGE_FILES: readonly string[] = [PAGE_FILE, `${PAGE_FILE}.new`];
const SOURCE_CARD_FILE = 'README.source.md';

/** A file to copy from a checkpoint to the result. */
export interface SideFile {
  /** Path or URL. */
  readonly source: string;
  /** Path relative to the output folder. */
  readonly target: string;
  readonly bytes: number;
}

/**
 * Lists a checkpoint's other files: tokenizer, generation settings, remote code, templates, licence. Hidden files (download
 * caches, version control) are left out. A source's README is kept
 * under another name, unless this program wrote it; then a new one replaces it. Throws an `UnsafePathError` for a name that leads
 * out of the folder.
 */
export async function listSideFiles({ folder, files }: Pick<Checkpoint, 'folder' | 'files'>): Promise<SideFile[]> {
  const held = (await files.list(folder)).filter(
    ({ path }) => ![CONFIG_FILE, INDEX_FILE, MANIFEST_FILE, ...PAGE_FILES].includes(path) && !OTHER_WEIGHTS.test(path),
  );
  // A peer may send any name. A local name may be a path on another system.
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
