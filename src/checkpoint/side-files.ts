/** What a checkpoint's folder holds beside its weights: which files a result gets a copy of, and which are left out. */
import { type InputError, ReadError, UnreadableFileError, UnsafePathError } from '../errors.js';
import { fileIn } from '../location.js';
import { MANIFEST_FILE } from '../output/manifest.js';
import { CONFIG_FILE, INDEX_FILE } from './file-names.js';
import { isLfsPointer, MAX_POINTER_BYTES } from './lfs-pointer.js';
import { count, listNames } from './list-names.js';
import { DANGLING } from './model-shards.js';
import type { Checkpoint } from './open-checkpoint.js';
import { isPlainPath } from './plain-path.js';

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

/** A folder whose side files are listed. With its shards and config, more can be told about them. */
export type SideFileSource = Pick<Checkpoint, 'folder' | 'files'> & Partial<Pick<Checkpoint, 'shards' | 'config'>>;

/**
 * Lists the files that a result gets a copy of: tokenizer, generation settings, remote code, templates, licence, pictures. Hidden
 * files (download caches, version control) are left out, and so are weights in other formats, which are of the uncompressed model,
 * and large files of unknown kinds. A source's README is kept under another name, unless this program wrote it; then a new one
 * replaces it. A file that cannot be read is left out too (`sideFileNotes` tells). If it is code that loading needs, this throws
 * an `UnreadableFileError`. Throws an `UnsafePathError` for a name that leads out of the folder.
 */
export async function listSideFiles(source: SideFileSource): Promise<SideFile[]> {
  const { sideFiles, refusal } = await survey(source);
  if (refusal) throw refusal;
  return sideFiles;
}

/** Sentences on what a result gets no copy of. */
export async function sideFileNotes(source: SideFileSource): Promise<string[]> {
  const { unreadable, weights, unknown } = await survey(source);
  const left = (names: readonly string[], what: string): string[] =>
    names.length ? [`left out: ${count(names.length, 'file')} ${what} (${listNames(names)}).`] : [];
  return [
    ...unreadable.map(({ path, reason }) => `${path} is left out: ${reason}.`),
    ...left(weights, 'of weights in other formats'),
    ...left(unknown, 'that the model is not known to need'),
  ];
}

interface Survey {
  readonly sideFiles: SideFile[];
  readonly unreadable: ReadonlyArray<{ readonly path: string; readonly reason: string }>;
  readonly weights: readonly string[];
  readonly unknown: readonly string[];
  /** Why no result can be made of the folder, which can be looked at all the same. */
  readonly refusal: InputError | undefined;
}

async function survey(source: SideFileSource): Promise<Survey> {
  const { folder, files, shards = [], config = {} } = source;
  const own = new Set([CONFIG_FILE, INDEX_FILE, MANIFEST_FILE, ...PAGE_FILES].map((path) => fileIn(folder, path)));
  for (const { path } of shards) own.add(path);
  const all = (await files.list(folder)).filter(({ path }) => !own.has(fileIn(folder, path)));
  // A peer may send any name. A local name may be a path on another system.
  const unsafe = all.find(({ path }) => !isPlainPath(path));
  const held = all.filter(({ path }) => isPlainPath(path));

  const ours = held.some(({ path }) => path === REPORT_FILE);
  const otherFolders = new Set(held.filter(({ path }) => isWeights(path)).map(({ path }) => parentOf(path)));
  otherFolders.delete('');
  for (const { path } of shards) otherFolders.delete(parentOf(path.slice(folder.length + 1)));
  const isOther = (path: string): boolean =>
    isWeights(path) ||
    OTHER_FOLDERS.test(path) ||
    (!MEDIA.test(path) && parentsOf(path).some((it) => otherFolders.has(it)));

  const found: { sideFiles: SideFile[]; weights: string[]; unknown: string[] } = {
    sideFiles: [],
    weights: [],
    unknown: [],
  };
  const unreadable = new Map<string, string>();
  for (const path of (await files.dangling?.(folder)) ?? []) if (!isOther(path)) unreadable.set(path, DANGLING);
  for (const { path, bytes } of held) {
    if (path === REPORT_FILE || (ours && path === CARD_FILE)) continue;
    const at = fileIn(folder, path);
    if (isOther(path)) {
      if (!/^[^/]+\.safetensors$/.test(path)) found.weights.push(path); // those are told with the shards
    } else if (bytes > limitOf(path)) found.unknown.push(path);
    else {
      const head = await readHead(source, at, bytes);
      if (typeof head === 'string') unreadable.set(path, head);
      else if (isLfsPointer(head)) unreadable.set(path, 'it is a git-lfs pointer ("git lfs pull" fetches the file)');
      else if (!isKnown(path) && !isText(head)) found.unknown.push(path);
      else found.sideFiles.push({ source: at, target: path === CARD_FILE ? SOURCE_CARD_FILE : path, bytes });
    }
  }
  const code = [...unreadable].find(([path]) => path.endsWith('.py') && config.auto_map);
  return {
    ...found,
    unreadable: [...unreadable].map(([path, reason]) => ({ path, reason })),
    refusal:
      (unsafe && new UnsafePathError(folder, unsafe.path)) ??
      (code && new UnreadableFileError(fileIn(folder, code[0]), code[1])),
  };
}

const parentOf = (path: string): string => path.slice(0, Math.max(0, path.lastIndexOf('/')));

const parentsOf = (path: string): string[] => {
  const parents: string[] = [];
  for (let it = parentOf(path); it; it = parentOf(it)) parents.push(it);
  return parents;
};

/** Formats of weights, of archives and of what training leaves; with what their parts and unfinished downloads are called. */
const WEIGHTS =
  /\.(?:safetensors|bin|pth?|ckpt|gguf|ggml|llamafile|onnx|h5|hdf5|keras|msgpack|ot|tflite|pb|distcp|nemo|np[yz]|pdparams|pdiparams|pkl|pickle|joblib|mlmodel|mlpackage|pte|engine|trt|tar|tar\.\w+|tgz|zip|7z|rar|dat|parquet|arrow|bak|aria2|incomplete)(?:[._](?:data|part[0-9a-z]*|bak|aria2|old|tmp|incomplete|metadata|\d+))*$/i;
/** An index of such weights, a model description beside them, an adapter's settings: a loader would take the result for that. */
const OF_WEIGHTS = /\.index(?:\.[^./]+)?\.json$|(?:^|\/)(?:openvino_\w*\.xml|adapter_config\.json)$/;
/** Folders that publishers keep copies of a model in. */
const OTHER_FOLDERS = /^(?:original|metal|onnx|openvino|coreml|gguf|mlx|tflite|flax|nemo)\//i;

const isWeights = (path: string): boolean => WEIGHTS.test(path) || OF_WEIGHTS.test(path);

/** Text, which tokenizers, settings, code, templates and licences are. Tokenizers have some 30 MB. */
const TEXT =
  /\.(?:jsonl?|txt|md|rst|py|pyi|ya?ml|toml|jinja2?|j2|model|spm|tiktoken|vocab|bpe|merges|csv|tsv|html|ipynb|txt\.gz)$/i;
const MAX_TEXT_BYTES = 256 * 1024 * 1024;
/** Pictures of a README, sounds and clips of a multimodal model's examples. */
const MEDIA = /\.(?:png|jpe?g|gif|webp|svg|ico|bmp|pdf|wav|mp3|flac|ogg|mp4|webm|ttf|otf)$/i;
const MAX_MEDIA_BYTES = 16 * 1024 * 1024;
/** A file of any other name is copied where it is text and small: a licence, a policy, a script. */
const MAX_UNKNOWN_BYTES = 1024 * 1024;

const isKnown = (path: string): boolean => TEXT.test(path) || MEDIA.test(path);

const limitOf = (path: string): number =>
  TEXT.test(path) ? MAX_TEXT_BYTES : MEDIA.test(path) ? MAX_MEDIA_BYTES : MAX_UNKNOWN_BYTES;

/** Faults of one file, not of a disk or a connection. */
const UNREADABLE: ReadonlySet<string | undefined> = new Set(['EACCES', 'EPERM', 'ENOENT', 'ELOOP']);

/** The whole of a file that is not known by its name, the beginning of any other; why not, where it cannot be read. */
async function readHead({ files }: SideFileSource, file: string, bytes: number): Promise<Uint8Array | string> {
  const end = isKnown(file) ? Math.min(bytes, MAX_POINTER_BYTES) : bytes;
  try {
    return await files.readRange({ file, start: 0, end });
  } catch (error) {
    if (error instanceof ReadError && UNREADABLE.has(error.code)) return `it cannot be read (${error.code})`;
    throw error;
  }
}

function isText(bytes: Uint8Array): boolean {
  if (bytes.includes(0)) return false;
  try {
    new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}
