/** Lists the files of a checkpoint's folder beside its weights: those that a result gets a copy of and those that are left out. */
import { type InputError, ReadError, UnreadableFileError, UnsafePathError } from '../errors.js';
import { fileIn } from '../location.js';
import { MANIFEST_FILE } from '../output/manifest.js';
import type { SourceFolder } from '../sources/files.js';
import { CONFIG_FILE, INDEX_FILE } from './file-names.js';
import { isLfsPointer, MAX_POINTER_BYTES } from './lfs-pointer.js';
import { count, listNames } from './list-names.js';
import { DANGLING } from './model-shards.js';
import type { Shard } from './open-shard.js';
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

/** A folder whose side files are listed. Its shards are not side files. Its config shows whether loading needs code. */
export interface SideFileSource extends SourceFolder {
  readonly shards?: ReadonlyArray<Pick<Shard, 'path'>>;
  readonly config?: Readonly<Record<string, unknown>>;
}

/**
 * Lists the files that a result gets a copy of: tokenizer, generation settings, remote code, templates, licence, pictures. It
 * leaves out hidden files (download caches, version control), weights in other formats, because they are of the uncompressed
 * model, and large or binary files of unknown kinds. A source's README is kept under another name. If this program wrote it, a
 * new one replaces it. A file that cannot be read is left out, with a sentence in `sideFileNotes`. If it is code that loading
 * needs, this throws an `UnreadableFileError`. Throws an `UnsafePathError` for a name that leads out of the folder.
 */
export async function listSideFiles(source: SideFileSource): Promise<SideFile[]> {
  const { sideFiles, refusal } = await survey(source);
  if (refusal) throw refusal;
  return sideFiles;
}

/** Sentences on the files that a result gets no copy of. */
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
  /** The error if no result can be made from the folder. The folder can still be inspected. */
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
      if (!/^[^/]+\.safetensors$/.test(path)) found.weights.push(path); // openModelShards has a note on the others
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

/** Names of weights, archives and files of a training, also of their parts and unfinished downloads. */
const WEIGHTS =
  /\.(?:safetensors|bin|pth?|ckpt|gguf|ggml|llamafile|onnx|h5|hdf5|keras|msgpack|ot|tflite|pb|distcp|nemo|np[yz]|pdparams|pdiparams|pkl|pickle|joblib|mlmodel|mlpackage|pte|engine|trt|tar|tar\.\w+|tgz|zip|7z|rar|dat|parquet|arrow|bak|aria2|incomplete)(?:[._](?:data|part[0-9a-z]*|bak|aria2|old|tmp|incomplete|metadata|\d+))*$/i;
/** Names of files that describe other weights: an index, OpenVINO's model, an adapter's settings. They would mislead loaders. */
const OF_WEIGHTS = /\.index(?:\.[^./]+)?\.json$|(?:^|\/)(?:openvino_\w*\.xml|adapter_config\.json)$/;
/** Folders in which publishers keep copies of a model. */
const OTHER_FOLDERS = /^(?:original|metal|onnx|openvino|coreml|gguf|mlx|tflite|flax|nemo)\//i;

const isWeights = (path: string): boolean => WEIGHTS.test(path) || OF_WEIGHTS.test(path);

/** Names of text files: tokenizers, settings, code, templates, licences. A tokenizer may have 30 MB. */
const TEXT =
  /\.(?:jsonl?|txt|md|rst|py|pyi|ya?ml|toml|jinja2?|j2|model|spm|tiktoken|vocab|bpe|merges|csv|tsv|html|ipynb|txt\.gz)$/i;
const MAX_TEXT_BYTES = 256 * 1024 * 1024;
/** Names of a README's pictures, and of the sounds and clips of a multimodal model's examples. */
const MEDIA = /\.(?:png|jpe?g|gif|webp|svg|ico|bmp|pdf|wav|mp3|flac|ogg|mp4|webm|ttf|otf)$/i;
const MAX_MEDIA_BYTES = 16 * 1024 * 1024;
/** A file with any other name is copied if it is text and not larger than this, for example a licence or a script. */
const MAX_UNKNOWN_BYTES = 1024 * 1024;

const isKnown = (path: string): boolean => TEXT.test(path) || MEDIA.test(path);

const limitOf = (path: string): number =>
  TEXT.test(path) ? MAX_TEXT_BYTES : MEDIA.test(path) ? MAX_MEDIA_BYTES : MAX_UNKNOWN_BYTES;

/** The error codes that concern one file, not a disk or a connection. */
const UNREADABLE: ReadonlySet<string | undefined> = new Set(['EACCES', 'EPERM', 'ENOENT', 'ELOOP']);

/** Reads the beginning of a file, or all of it if its name is not known. If it cannot be read, returns the reason. */
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
