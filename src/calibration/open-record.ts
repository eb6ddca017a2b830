/** Opens a calibration record that is complete. */
import { resolve } from 'node:path';
import { CONFIG_FILE, readJsonObject } from '../checkpoint/open-checkpoint.js';
import {
  DamagedRecordError,
  InvalidJsonError,
  NotARecordError,
  OtherRecordError,
  RecordLayerError,
} from '../errors.js';
import { type FileSystem, nodeFileSystem } from '../file-system.js';
import { fileIn } from '../location.js';
import { PARTIAL_FOLDER } from '../output/journal.js';
import { LocalFiles } from '../sources/files.js';
import { findLayer, openLayer, readTokens } from './layer-file.js';
import { type CalibrationRecord, RECORD_FILE, type RecordFacts, recordFacts } from './record.js';

/** Options of `openRecord`. */
export interface OpenRecordOptions {
  /** The fingerprint of the model that the record must be of. */
  readonly sourceFingerprint?: string | undefined;
  readonly fs?: FileSystem | undefined;
}

/** Opens the record in a local folder. Throws a `RecordError` if it is incomplete, damaged, or of another model. */
export async function openRecord(
  folder: string,
  { sourceFingerprint, fs = nodeFileSystem }: OpenRecordOptions = {},
): Promise<CalibrationRecord> {
  const name = resolve(folder);
  const files = new LocalFiles(fs);
  const facts = await readFacts(name, fs, files);
  if (sourceFingerprint !== undefined && facts.sourceFingerprint !== sourceFingerprint)
    throw new OtherRecordError(folder);
  return {
    name: folder,
    facts,
    async layer(number) {
      if (!facts.layers.includes(number)) throw new RecordLayerError(folder, number, facts.layers);
      return openLayer(name, number, facts.sequences * facts.length, files);
    },
    release: async () => {},
    tokens: () => readTokens(name, facts, files),
    close: () => files.close(),
  };
}

/**
 * Reads the headers of these layers' files, so that missing and damaged files are known before a long run. Throws a `RecordError`
 * as `layer` does.
 */
export async function checkLayers(
  folder: string,
  { layers: held, sequences, length }: RecordFacts,
  layers: Iterable<number>,
  fs: FileSystem = nodeFileSystem,
): Promise<void> {
  const files = new LocalFiles(fs);
  try {
    for (const layer of new Set(layers)) {
      if (!held.includes(layer)) throw new RecordLayerError(folder, layer, held);
      await findLayer(resolve(folder), layer, sequences * length, files);
    }
  } finally {
    await files.close();
  }
}

async function readFacts(folder: string, fs: FileSystem, files: LocalFiles): Promise<RecordFacts> {
  const file = fileIn(folder, RECORD_FILE);
  const names = await fs.readdir(folder).catch((error: NodeJS.ErrnoException) => {
    const reasons: Record<string, string> = { ENOENT: 'there is no such folder', ENOTDIR: 'it is a file' };
    throw new NotARecordError(folder, reasons[error.code ?? ''] ?? `${error.code}`);
  });
  if (!names.includes(RECORD_FILE)) {
    if (names.includes(PARTIAL_FOLDER))
      throw new NotARecordError(folder, 'it is not finished; run the same "mobe calibrate" again');
    const model = names.includes(CONFIG_FILE) ? '; it is a checkpoint' : '';
    throw new NotARecordError(folder, `it has no ${RECORD_FILE}${model}`);
  }
  try {
    const { success, data, error } = recordFacts.safeParse(await readJsonObject(file, files));
    if (success) return data;
    const [issue] = error.issues;
    throw new DamagedRecordError(file, `its entry "${issue?.path.join('.')}" is wrong (${issue?.message})`);
  } catch (error) {
    if (error instanceof InvalidJsonError) throw new DamagedRecordError(file, 'it is not readable as JSON');
    throw error;
  } finally {
    await files.close();
  }
}
