/** A record that is made while it is used: each layer is recorded when it is asked for, and few of them are on disk at a time. */
import { openLayer } from '../../src/calibration/layer-file.js';
import { type Pass, runNextLayer } from '../../src/calibration/pass.js';
import { PassFolder } from '../../src/calibration/pass-folder.js';
import type { CalibrationPlan } from '../../src/calibration/pass-plan.js';
import type { CalibrationRecord, LayerRecord } from '../../src/calibration/record.js';
import { InterruptedError, RecordLayerError } from '../../src/errors.js';
import { type FileSystem, nodeFileSystem } from '../../src/file-system.js';
import { type CalibrateOptions, calibrateSettings } from '../../src/inference/run-options.js';
import { bytesIn, checkDisk } from '../../src/output/folder-checks.js';
import { LocalFiles } from '../../src/sources/files.js';
import type { Source } from '../machines/remote-files.js';
import type { CalibrateHooks } from './calibrate.js';
import { preparePass } from './prepare-pass.js';

/** Layers whose records are on disk at a time: one that is fitted, and the next. */
const MOST_LAYERS = 2;

/** A record that is made while it is used. `close` keeps its files, so that the same call continues. */
export interface RecordInUse extends CalibrationRecord {
  readonly plan: CalibrationPlan;
}

/**
 * Opens a record of `source` that is made while it is used, with its files in `folder`, which the caller removes in the end.
 * `layer(n)` runs the model up to layer n. It waits while two other layers are not released. A layer before those that have run
 * costs another pass from the first layer. Calls are served one after another.
 */
export async function recordWhileUsed(
  source: Source,
  options: CalibrateOptions,
  folder: string,
  hooks: Omit<CalibrateHooks, 'force' | 'onPlan'> = {},
): Promise<RecordInUse> {
  const { fileSystem: fs = nodeFileSystem, signal, onLayer, onWriting } = hooks;
  const prepared = await preparePass(source, calibrateSettings(options), hooks);
  try {
    const { facts, identity, sizes, model } = prepared;
    const plan = inUse(prepared.plan);
    await fs.mkdir(folder);
    await checkDisk(folder, plan.recordBytes + plan.workBytes - (await bytesIn(folder, fs)), fs);
    const pass = await PassFolder.open(folder, { identity, sizes, shown: folder }, fs);
    const tokens = await prepared.tokens(folder, onWriting);
    const layers = (facts.layers.at(-1) as number) + 1;
    const onSequences = (layer: number, done: number): void =>
      onLayer?.({ layer, layers, done, sequences: sizes.sequences });
    const recorder = new Recorder({ model, folder: pass, sizes, tokens, onSequences }, facts.layers, fs, signal);
    return {
      ...{ name: folder, facts, plan },
      layer: (number) => recorder.open(number),
      release: (number) => recorder.release(number),
      tokens: async () => tokens.slice(),
      async close() {
        await recorder.close();
        await prepared.close();
      },
    };
  } catch (error) {
    await prepared.close();
    throw error;
  }
}

/** The disk that is needed with `MOST_LAYERS` layers at a time. */
const inUse = (plan: CalibrationPlan): CalibrationPlan => ({
  ...plan,
  recordBytes: Math.ceil((plan.recordBytes * Math.min(MOST_LAYERS, plan.layers)) / plan.layers),
});

interface HeldLayer {
  readonly record: LayerRecord;
  readonly files: LocalFiles;
}

class Recorder {
  /** Layers that were given out and are not released. */
  private readonly held = new Map<number, HeldLayer>();
  /** Resolves when the last call is served. */
  private tail: Promise<unknown> = Promise.resolve();
  private onRelease = (): void => {};
  private closed = false;

  constructor(
    private readonly pass: Pass,
    private readonly layers: readonly number[],
    private readonly fs: FileSystem,
    private readonly signal: AbortSignal | undefined,
  ) {}

  async open(number: number): Promise<LayerRecord> {
    if (!this.layers.includes(number)) throw new RecordLayerError(this.pass.folder.folder, number, this.layers);
    const known = this.held.get(number);
    if (known) return known.record;
    const opened = this.tail.then(() => this.take(number));
    this.tail = opened.catch(() => {}); // the caller gets the error
    return opened;
  }

  private async take(number: number): Promise<LayerRecord> {
    const known = this.held.get(number);
    if (known) return known.record;
    while (this.held.size >= MOST_LAYERS) await this.nextRelease();
    const { folder, sizes } = this.pass;
    if (!(await folder.holds(number))) await this.record(number);
    const files = new LocalFiles(this.fs);
    const record = await openLayer(folder.folder, number, sizes.sequences * sizes.length, files);
    this.held.set(number, { record, files });
    return record;
  }

  private async record(number: number): Promise<void> {
    const { folder } = this.pass;
    // An interrupted run may have left layers that are no longer needed.
    for (const layer of this.layers) if (!this.held.has(layer)) await folder.removeLayer(layer);
    if (number < folder.layer) await folder.restart();
    try {
      while (folder.layer <= number) await runNextLayer(this.pass, folder.layer === number);
    } finally {
      await folder.close();
    }
  }

  private async nextRelease(): Promise<void> {
    const { signal } = this;
    this.checkStopped();
    await new Promise<void>((resolve) => {
      this.onRelease = resolve;
      signal?.addEventListener('abort', () => resolve(), { once: true });
    });
    this.checkStopped();
  }

  private checkStopped(): void {
    if (this.closed || this.signal?.aborted) throw new InterruptedError();
  }

  async release(number: number): Promise<void> {
    const layer = this.held.get(number);
    if (!layer) return;
    this.held.delete(number);
    await layer.files.close();
    await this.pass.folder.removeLayer(number);
    this.onRelease();
  }

  /** Ends calls that wait for a release. */
  async close(): Promise<void> {
    this.closed = true;
    this.onRelease();
    await this.tail;
    for (const { files } of this.held.values()) await files.close();
    this.held.clear();
  }
}
