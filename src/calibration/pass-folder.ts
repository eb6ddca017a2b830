/**
 * The files of an unfinished pass through a model, in a folder: finished layers, hidden states between two layers, and a state
 * file that says what is done. The state is written after the data that it names is on disk, so a pass continues from it after a
 * crash at any point.
 */
import { join } from 'node:path';
import { z } from 'zod';
import { encodeFloats } from '../checkpoint/codec.js';
import { DamagedRecordError, NonFiniteActivationError, UnfinishedRunError } from '../errors.js';
import {
  type FileSystem,
  type OpenFile,
  readAll,
  readWhole,
  syncFolder,
  writeAll,
  writeSynced,
} from '../file-system.js';
import type { ExpertsObservation } from '../inference/experts-layer.js';
import { listOf } from '../list-of.js';
import { sha256 } from '../output/sha256.js';
import { asWriteError, ShardWriter } from '../output/shard-writer.js';
import { type LayerSizes, layerLayout } from './layer-file.js';
import { layerFile } from './record.js';

/** Hidden, as all files of a run itself. */
const STATE_FILE = '.pass.json';
/** Far above the state of a million sequences. */
const MAX_STATE_BYTES = 256 * 2 ** 20;

const hashes = listOf(z.string().regex(/^[0-9a-f]{64}$/));
const stateSchema = z.strictObject({
  /** The facts that decide the bytes of the pass. */
  identity: z.record(z.string(), z.unknown()),
  /** The layer that runs next. */
  layer: z.int().nonnegative(),
  /** SHA-256 of each sequence's hidden states before that layer; empty for layer 0. */
  before: hashes,
  /** The same after it, for the sequences that are done. */
  after: hashes,
});
type State = z.infer<typeof stateSchema>;

/** The facts that decide the bytes of a pass, by names for messages. */
export type PassIdentity = Readonly<Record<string, string | number>>;

/** Sizes of a pass. */
export interface PassSizes {
  readonly sequences: number;
  /** Tokens of a sequence. */
  readonly length: number;
  /** d */
  readonly width: number;
}

/** The open files of the running layer. */
interface RunningLayer {
  /** Undefined for the first layer. */
  before?: OpenFile | undefined;
  /** Undefined for the last layer. */
  after?: OpenFile | undefined;
  /** Undefined for a dense layer. */
  record?: ShardWriter | undefined;
}

/** An unfinished pass. */
export class PassFolder {
  private running: RunningLayer = {};

  private constructor(
    readonly folder: string,
    private readonly sizes: PassSizes,
    private state: State,
    private readonly fs: FileSystem,
  ) {}

  /**
   * Opens the pass in an existing folder, or starts one. Throws `UnfinishedRunError` if the folder has a pass of another identity.
   * @param shown the folder that messages name
   */
  static async open(
    folder: string,
    { identity, sizes, shown }: { identity: PassIdentity; sizes: PassSizes; shown: string },
    fs: FileSystem,
  ): Promise<PassFolder> {
    const found = await readState(folder, fs);
    if (found) {
      const other = Object.keys(identity).find((key) => found.identity[key] !== identity[key]);
      if (other !== undefined)
        throw new UnfinishedRunError(shown, `its ${other} is ${found.identity[other]}, not ${identity[other]}`);
    }
    return new PassFolder(folder, sizes, found ?? { identity, layer: 0, before: [], after: [] }, fs);
  }

  /** The layer that runs next. */
  get layer(): number {
    return this.state.layer;
  }

  /** The number of sequences that it has done. */
  get done(): number {
    return this.state.after.length;
  }

  /**
   * Opens the files of the next layer.
   * @param record sizes of its record; undefined if it is dense
   * @param last whether no layer follows, so that the hidden states after it are not kept
   */
  async begin(record: LayerSizes | undefined, last: boolean): Promise<void> {
    const { layer } = this.state;
    const running: RunningLayer = {};
    this.running = running;
    try {
      if (layer > 0) running.before = await this.openStates(layer - 1, 'r');
      if (layer > 0 && !running.before) throw new DamagedRecordError(this.statesPath(layer - 1), 'the file is missing');
      if (this.done > 0) {
        running.record = record && (await this.reopenRecord(record));
        running.after = last ? undefined : await this.openStates(layer, 'r+');
        if ((!record || running.record) && (last || running.after)) return;
        await running.record?.abandon();
        await running.after?.close();
        this.state = { ...this.state, after: [] };
      }
      running.record = record && (await this.createRecord(record));
      running.after = last ? undefined : await this.openStates(layer, 'w');
    } catch (error) {
      throw error instanceof DamagedRecordError ? error : asWriteError(this.folder, error);
    }
  }

  private async openStates(layer: number, flags: 'r' | 'r+' | 'w'): Promise<OpenFile | undefined> {
    return this.fs.open(this.statesPath(layer), flags).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return undefined;
      throw error;
    });
  }

  /** The unfinished file of an interrupted run; undefined if there is none, or it is not usable. */
  private async reopenRecord(sizes: LayerSizes): Promise<ShardWriter | undefined> {
    const layout = layerLayout(this.layer, sizes);
    const partial = this.partialPath(this.layer);
    // A crash may have come between its last rename and the note of it.
    const renamed = await this.fs.stat(this.path(this.layer)).catch(() => undefined);
    if (renamed) await this.fs.rename(this.path(this.layer), partial);
    const writer = await ShardWriter.reopen(partial, layout, this.fs);
    const rows = this.done * this.sizes.length;
    for (const { name, bytes } of layout.tensors) writer?.trust(name, 0, (bytes / sizes.tokens) * rows);
    return writer;
  }

  private async createRecord(sizes: LayerSizes): Promise<ShardWriter> {
    for (const path of [this.path(this.layer), this.partialPath(this.layer)]) await this.fs.remove(path);
    return ShardWriter.create(this.partialPath(this.layer), layerLayout(this.layer, sizes), this.fs);
  }

  /** The hidden states (t, d) of some sequences before the layer, which is not the first. */
  async read(first: number, count: number): Promise<Float32Array> {
    const { length, width } = this.sizes;
    const path = this.statesPath(this.layer - 1);
    const hidden = new Float32Array(count * length * width);
    const bytes = new Uint8Array(hidden.buffer);
    const whole = await readAll(this.running.before as OpenFile, bytes, first * this.sequenceBytes);
    const same = whole && (await this.hash(bytes)).every((it, i) => it === this.state.before[first + i]);
    if (!same) throw new DamagedRecordError(path, 'it is not what was written to it');
    return hidden;
  }

  /** Writes what the layer did with the next sequences, and notes it. `hidden` (t, d) is after the layer. */
  async write(hidden: Float32Array, observed: ExpertsObservation | undefined): Promise<void> {
    const { after, record } = this.running;
    const bytes = bytesOf(hidden);
    try {
      if (record && observed) await this.writeRecord(record, hidden, observed);
      if (after) await writeAll(after, bytes, this.done * this.sequenceBytes);
      await record?.sync();
      await after?.sync();
      await this.save({ ...this.state, after: [...this.state.after, ...(await this.hash(bytes))] });
    } catch (error) {
      if (error instanceof NonFiniteActivationError) throw error;
      throw asWriteError(this.folder, error);
    }
  }

  private async writeRecord(
    record: ShardWriter,
    hidden: Float32Array,
    { x, routing: { experts, weights } }: ExpertsObservation,
  ): Promise<void> {
    const { length, width } = this.sizes;
    const tokens = hidden.length / width;
    const row = this.done * length;
    const scale = new Float32Array(tokens);
    for (let t = 0; t < tokens; t++) {
      let sum = 0;
      for (let i = t * width; i < (t + 1) * width; i++) sum += (hidden[i] as number) ** 2;
      scale[t] = 1 / Math.sqrt(sum / width);
      if (!(sum > 0 && Number.isFinite(scale[t]) && (scale[t] as number) > 0))
        throw new NonFiniteActivationError(this.layer);
    }
    await record.write('input', 2 * row * width, encodeFloats('BF16', x));
    const k = experts.length / tokens;
    for (const [name, values] of Object.entries({ experts, weights }))
      await record.write(name, 4 * row * k, bytesOf(values));
    await record.write('scale', 4 * row, bytesOf(scale));
  }

  /** Gives the layer's file its final name and goes on to the next layer. */
  async finish(): Promise<void> {
    const { layer } = this.state;
    const { before, after, record } = this.running;
    this.running = {};
    try {
      await before?.close();
      await after?.close();
      if (record) {
        await record.finish();
        await this.fs.rename(this.partialPath(layer), this.path(layer));
      }
      await syncFolder(this.folder, this.fs);
      await this.save({ ...this.state, layer: layer + 1, before: this.state.after, after: [] });
      if (layer > 0) await this.fs.remove(this.statesPath(layer - 1));
    } catch (error) {
      throw asWriteError(this.folder, error);
    }
  }

  /** Goes back to the first layer. Files of finished layers stay. */
  async restart(): Promise<void> {
    const { layer } = this.state;
    await this.save({ ...this.state, layer: 0, before: [], after: [] });
    for (const it of [layer - 1, layer]) await this.fs.remove(this.statesPath(it));
  }

  /** Whether the file of a layer is there. Only whole files have their names. */
  holds(layer: number): Promise<boolean> {
    return this.fs.stat(this.path(layer)).then(
      () => true,
      () => false,
    );
  }

  /** Removes the file of a finished layer. */
  async removeLayer(layer: number): Promise<void> {
    await this.fs.remove(this.path(layer));
  }

  /** Closes open files. The pass can be continued. */
  async close(): Promise<void> {
    const { before, after, record } = this.running;
    this.running = {};
    await record?.abandon();
    await before?.close().catch(() => {});
    await after?.close().catch(() => {});
  }

  private async save(state: State): Promise<void> {
    const path = join(this.folder, STATE_FILE);
    await writeSynced(this.fs, `${path}.new`, [new TextEncoder().encode(JSON.stringify(state))]);
    await this.fs.rename(`${path}.new`, path);
    await syncFolder(this.folder, this.fs);
    this.state = state;
  }

  private async hash(bytes: Uint8Array): Promise<string[]> {
    const parts = [];
    for (let at = 0; at < bytes.byteLength; at += this.sequenceBytes)
      parts.push(sha256(bytes.subarray(at, at + this.sequenceBytes)));
    return Promise.all(parts);
  }

  private get sequenceBytes(): number {
    return 4 * this.sizes.length * this.sizes.width;
  }

  private path(layer: number): string {
    return join(this.folder, layerFile(layer));
  }

  private partialPath(layer: number): string {
    return `${this.path(layer)}.partial`;
  }

  private statesPath(layer: number): string {
    return join(this.folder, `states-${layer}.f32`);
  }
}

const bytesOf = (values: Int32Array | Float32Array): Uint8Array =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

async function readState(folder: string, fs: FileSystem): Promise<State | undefined> {
  const bytes = await readWhole(fs, join(folder, STATE_FILE), MAX_STATE_BYTES);
  if (!bytes) return undefined;
  try {
    return stateSchema.parse(JSON.parse(new TextDecoder().decode(bytes)));
  } catch {
    return undefined; // it was damaged, so the pass starts again
  }
}
