/** Records what a model's experts see on a text: one pass through the model, layer by layer. */
import { join } from 'node:path';
import { tokensLayout } from '../../src/calibration/layer-file.js';
import { runNextLayer } from '../../src/calibration/pass.js';
import { PassFolder } from '../../src/calibration/pass-folder.js';
import type { CalibrationPlan, CalibrationProgress } from '../../src/calibration/pass-plan.js';
import { type RecordFacts, TOKENS_FILE } from '../../src/calibration/record.js';
import { RecordFolder } from '../../src/calibration/record-folder.js';
import { peakRssBytes } from '../../src/conversion/run-report.js';
import { InterruptedError, MobeError, NonFiniteActivationError, SourceChangedError } from '../../src/errors.js';
import { type FileSystem, nodeFileSystem, writeSynced } from '../../src/file-system.js';
import { type CalibrateOptions, calibrateSettings } from '../../src/inference/run-options.js';
import { checkOutside } from '../../src/output/folder-checks.js';
import type { Source } from '../machines/remote-files.js';
import type { RunHooks } from '../run-options.js';
import { blameSource } from './blame-source.js';
import { type PreparedPass, preparePass } from './prepare-pass.js';
import type { WritingProgress } from './write-text.js';

export type { CalibrationPlan, CalibrationProgress } from '../../src/calibration/pass-plan.js';
export type { WritingProgress } from './write-text.js';

/** Callbacks and connections of `calibrate`. */
export interface CalibrateHooks extends Pick<RunHooks, 'signal' | 'peers'> {
  /** Replaces another record in the folder, finished or not. */
  readonly force?: boolean;
  /** File operations for texts and record; default: those of the system. */
  readonly fileSystem?: FileSystem;
  /** Called before the work begins. */
  readonly onPlan?: (plan: CalibrationPlan) => void;
  readonly onLayer?: (progress: CalibrationProgress) => void;
  /** Called while the model writes its own text. */
  readonly onWriting?: (progress: WritingProgress) => void;
}

/** A finished calibration. */
export interface Calibration {
  /** Whether the same record was already there, so that nothing was done. */
  readonly already: boolean;
  readonly facts: RecordFacts;
  readonly plan: CalibrationPlan;
  readonly seconds: number;
  /** Bytes of weights read from the checkpoint. */
  readonly bytesRead: number;
  readonly peakRssBytes: number;
}

/**
 * Writes a record of `source` on texts into `folder` (the format: docs/calibration.md). An interrupted call resumes, and its
 * record has the same bytes. Throws an `InputError` if texts, options or folder do not allow the run, and a `RunError` if it
 * fails; `kept` says whether finished work was kept.
 */
export async function calibrate(
  source: Source,
  folder: string,
  options: CalibrateOptions,
  hooks: CalibrateHooks = {},
): Promise<Calibration> {
  const started = performance.now();
  const { force = false, fileSystem: fs = nodeFileSystem } = hooks;
  const pass = await preparePass(source, calibrateSettings(options), hooks);
  const { facts, plan, checkpoint, model } = pass;
  try {
    await checkOutside(folder, [checkpoint.folder]);
    const neededBytes = plan.recordBytes + plan.workBytes;
    const output = await RecordFolder.create(folder, { facts, neededBytes, force, fs });
    if (output) {
      hooks.onPlan?.(plan);
      await record(pass, output, hooks, fs);
    }
    return {
      already: output === undefined,
      ...{ facts, plan },
      seconds: (performance.now() - started) / 1000,
      bytesRead: model.usage().bytesRead,
      peakRssBytes: peakRssBytes(),
    };
  } finally {
    await pass.close();
  }
}

async function record(
  pass: PreparedPass,
  output: RecordFolder,
  { onLayer, onWriting, signal }: CalibrateHooks,
  fs: FileSystem,
): Promise<void> {
  const { checkpoint, model, sizes, identity, facts } = pass;
  let folder: PassFolder | undefined;
  let begun = false;
  try {
    folder = await PassFolder.open(output.workspace, { identity, sizes, shown: output.folder }, fs);
    const layers = (facts.layers.at(-1) as number) + 1;
    const { sequences, length } = sizes;
    begun = facts.fromModel === true; // what the model has written is kept
    const tokens = await pass.tokens(output.workspace, onWriting);
    const onSequences = (layer: number, done: number): void => onLayer?.({ layer, layers, done, sequences });
    const bytes = new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength);
    await writeSynced(fs, join(output.workspace, TOKENS_FILE), [tokensLayout(sequences, length).header, bytes]);
    while (folder.layer < layers) await runNextLayer({ model, folder, sizes, tokens, onSequences });
    await checkpoint.files.checkUnchanged();
    await output.commit();
  } catch (error) {
    await folder?.close();
    const cause = signal?.aborted ? new InterruptedError() : await blameSource(error, checkpoint.files);
    const useless = cause instanceof SourceChangedError || cause instanceof NonFiniteActivationError;
    if (folder && (folder.layer > 0 || folder.done > 0)) begun = true;
    const keep = begun && !useless;
    // Without a folder, the unfinished work is that of another command.
    await output.abandon(keep || folder === undefined);
    if (keep && cause instanceof MobeError) cause.kept = output.folder;
    throw cause;
  }
}
