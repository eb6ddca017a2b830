/** Checks by its manifest that a result is as it was written. This does not need the source. */

import { PAGE_FILES } from '../../src/checkpoint/side-files.js';
import { readReport } from '../../src/conversion/existing-output.js';
import { QUANT_CONFIG_FILE } from '../../src/conversion/quantisation-changes.js';
import { REPORT_FILE } from '../../src/conversion/run-report.js';
import { DamagedManifestError, InterruptedError, NotACheckpointError } from '../../src/errors.js';
import { inLanes } from '../../src/in-lanes.js';
import { fileIn } from '../../src/location.js';
import { decodeManifest, MANIFEST_FILE, type Manifest, type ManifestPart } from '../../src/output/manifest.js';
import { checkSeal } from '../../src/output/seal.js';
import { HASHES_AT_ONCE, sha256 } from '../../src/output/sha256.js';
import type { Files } from '../../src/sources/files.js';
import { sourceName } from '../../src/sources/open-source.js';
import { openFiles, type Source } from '../machines/remote-files.js';
import type { RunHooks } from '../run-options.js';

/** The result of a check against the manifest. */
export interface Integrity {
  /** Descriptions of damaged and missing parts; empty if every byte is as it was written. */
  readonly problems: readonly string[];
  readonly files: number;
  readonly tensors: number;
  readonly bytes: number;
  /** Files that the conversion did not write. */
  readonly unlisted: readonly string[];
  readonly seconds: number;
}

/**
 * Hashes every file of a result and compares the hashes with its manifest. Throws `NotACheckpointError` if there is no
 * manifest: then an older version wrote the result, or another program did.
 */
export async function verifyIntegrity(out: Source, hooks: RunHooks = {}): Promise<Integrity> {
  const { folder, files } = openFiles(out, hooks);
  try {
    const integrity = await checkManifest(folder, files, hooks);
    if (integrity?.unlisted.includes(QUANT_CONFIG_FILE)) {
      const added = `${QUANT_CONFIG_FILE} was added: loaders take from it how tensors are quantised`;
      return { ...integrity, problems: [...integrity.problems, added] };
    }
    if (integrity) return integrity;
  } finally {
    await files.close();
  }
  throw new NotACheckpointError(
    sourceName(out),
    `it has no ${MANIFEST_FILE} to be checked by. To compare it with its source instead, name both`,
  );
}

/** Does the same for opened files. Returns undefined if there is no manifest and the record does not list one. */
export async function checkManifest(folder: string, files: Files, hooks: RunHooks): Promise<Integrity | undefined> {
  const started = performance.now();
  const held = new Map((await files.list(folder)).map(({ path, bytes }) => [path, bytes] as const));
  const problems: string[] = [];
  const record = held.has(REPORT_FILE) ? await readReport(folder, files) : undefined;
  if (!held.has(MANIFEST_FILE)) {
    if (!record?.files.includes(MANIFEST_FILE)) return undefined;
    problems.push(`${MANIFEST_FILE} is missing`);
  }
  await checkRecord(folder, files, held, problems);
  const manifest = await readManifest(folder, files, held, problems);
  const unlisted = [...held.keys()].filter((file) => !manifest.has(file) && !OWN_FILES.includes(file));
  const bytes = [...manifest.values()].reduce((sum, parts) => sum + (parts.at(-1)?.end ?? 0), 0);
  hooks.onProgress?.({ kind: 'phase', phase: 'verify', groups: 0, bytes });
  let done = 0;
  const onBytes = (count: number): void => {
    done += count;
    hooks.onProgress?.({ kind: 'bytes', bytes: done });
  };
  for (const [file, parts] of manifest) {
    const size = parts.at(-1)?.end ?? 0;
    const actual = held.get(file);
    if (actual === undefined) problems.push(`${file} is missing`);
    else if (actual !== size) problems.push(`${file} has ${actual} bytes, ${size} were written`);
    else problems.push(...(await checkFile(file, fileIn(folder, file), parts, files, { ...hooks, onBytes })));
  }
  const tensors = new Set([...manifest.values()].flatMap((parts) => parts.flatMap(({ tensor }) => tensor ?? [])));
  const seconds = (performance.now() - started) / 1000;
  return { problems, files: manifest.size, tensors: tensors.size, bytes, unlisted, seconds };
}

/**
 * Files that the manifest does not list: itself, and the record and page, which have timings. Manifest and record have
 * checksums of their own.
 */
const OWN_FILES = [MANIFEST_FILE, REPORT_FILE, ...PAGE_FILES];

type Held = ReadonlyMap<string, number>;

async function checkRecord(folder: string, files: Files, held: Held, problems: string[]): Promise<void> {
  const bytes = held.get(REPORT_FILE);
  if (bytes === undefined) {
    problems.push(`${REPORT_FILE} is missing`);
    return;
  }
  const content = await files.readRange({ file: fileIn(folder, REPORT_FILE), start: 0, end: bytes });
  if (checkSeal(content) !== 'sound') problems.push(`${REPORT_FILE} is damaged: its own checksum is wrong`);
}

async function readManifest(folder: string, files: Files, held: Held, problems: string[]): Promise<Manifest> {
  const end = held.get(MANIFEST_FILE);
  if (end === undefined) return new Map();
  const file = fileIn(folder, MANIFEST_FILE);
  try {
    return decodeManifest(await files.readRange({ file, start: 0, end }), MANIFEST_FILE);
  } catch (error) {
    if (!(error instanceof DamagedManifestError)) throw error;
    problems.push(error.message);
    return new Map();
  }
}

/** Returns one problem for each tensor or header that has damaged parts. */
async function checkFile(
  file: string,
  path: string,
  parts: readonly ManifestPart[],
  files: Files,
  { signal, onBytes }: RunHooks & { onBytes: (count: number) => void },
): Promise<string[]> {
  const isShard = parts.some(({ tensor }) => tensor !== undefined);
  const wrong = new Set<ManifestPart>();
  await inLanes(HASHES_AT_ONCE, parts, async (part) => {
    if (signal?.aborted) throw new InterruptedError();
    const bytes = await files.readRange({ file: path, start: part.start, end: part.end });
    if ((await sha256(bytes)) !== part.sha256) wrong.add(part);
    onBytes(bytes.byteLength);
  });
  const damaged = new Map<string | undefined, ManifestPart[]>();
  for (const part of parts) {
    if (!wrong.has(part)) continue;
    const others = damaged.get(part.tensor);
    if (others) others.push(part);
    else damaged.set(part.tensor, [part]);
  }
  return [...damaged].map(([tensor, [first, ...more]]) => {
    const what = tensor !== undefined ? `tensor "${tensor}" in ${file}` : isShard ? `the header of ${file}` : file;
    const { start = 0, end = 0 } = first ?? {};
    const others = more.length ? `, and ${more.length} more parts` : '';
    return `${what} is damaged: bytes ${start} to ${end - 1} of the file are not those that were written${others}`;
  });
}
