/** What `mobe receive` (receive.ts) does with the requests of one conversion: docs/wire.md, "Output". */

import { LENGTH_BYTES, parseHeader, parseHeaderLength } from '../../src/checkpoint/header.js';
import { parseIdentity } from '../../src/conversion/run-identity.js';
import { ProtocolError } from '../../src/errors.js';
import type { FileSystem } from '../../src/file-system.js';
import type { ShardLayout } from '../../src/output/layout.js';
import type { OutputFolder } from '../../src/output/output-folder.js';
import type { RunIdentity, Unit } from '../../src/output/unfinished-run.js';
import { checkParams } from '../../src/transport/check-params.js';
import { jsonPiece, readJson } from '../../src/transport/json-tensor.js';
import type { Handler, Reply } from '../../src/transport/requests.js';
import type { TensorPiece } from '../../src/transport/tensor-piece.js';
import { openFolder } from '../operations/open-folder.js';
import { takeTensor } from './collect.js';
import {
  abandonParams,
  commitParams,
  createParams,
  DONE,
  type DoneParams,
  doneParams,
  fileParams,
  MAX_HEADER,
  MAX_IDENTITY_BYTES,
  MAX_UNITS_BYTES,
  MAX_WAITING_BYTES,
  parsePieceName,
  reserveParams,
  resumeParams,
} from './output-protocol.js';
import type { ServiceHooks } from './peer-options.js';

/** Between two events about one request. */
const PROGRESS_MS = 200;

export interface ReceiveHooks extends ServiceHooks {
  /** Bytes of tensors written so far. */
  readonly onBytes?: (bytes: number) => void;
  /** What the result is written with. */
  readonly fileSystem?: FileSystem;
}

/** Of several conversations one writes. */
interface Turn {
  /** Waits for it; throws where another conversation has it. */
  take(run: RunIdentity | undefined): Promise<void>;
  give(): void;
}

/** One conversation about one output. */
export class OutputSession {
  private output: OutputFolder | undefined;
  private bytes = 0;
  /** Something of it has come: it is too late to resume. */
  private begun = false;
  /** Finished units of which something is still to be written, or to be put on disk. */
  private readonly waiting = new Map<Unit, Promise<void>>();
  private waitingBytes = 0;
  private failure: unknown;
  private fail: (error: unknown) => void = () => {};
  /** Whose run it is, where that can be continued. */
  run: RunIdentity | undefined;
  /** The result is whole. */
  finished = false;
  /** It is not, and what there is of it was left. */
  kept = false;

  constructor(
    private readonly peer: string,
    private readonly folder: string,
    private readonly hooks: ReceiveHooks,
    private readonly turn: Turn,
  ) {}

  readonly handlers: Readonly<Record<string, Handler>> = {
    create: async (params, { uploads, tensors }) => {
      if (this.output || this.finished || this.kept) throw new ProtocolError(this.peer, 'it creates an output twice');
      const { wanted, neededBytes, force } = checkParams(this.peer, '"create"', createParams, params);
      this.run = undefined;
      const first = await uploads.next();
      if (!first.done) {
        const identity = await takeTensor(this.peer, uploads, "the run's identity", MAX_IDENTITY_BYTES, first.value);
        this.run = readJson(this.peer, "the run's identity", identity, parseIdentity);
      }
      await this.turn.take(this.run);
      const request = { wanted, neededBytes, inputs: [], ...(this.run && { identity: this.run }) };
      const options = { force, fileSystem: this.hooks.fileSystem };
      const opened = await openFolder(this.folder, request, options).catch((error) => {
        this.turn.give();
        throw error;
      });
      if ('output' in opened) {
        this.output = opened.output;
        return { unfinished: opened.output.unfinished };
      }
      this.finished = true;
      await tensors([jsonPiece(opened.done)]);
      return { unfinished: false };
    },

    resume: async (_params, { uploads, tensors, event }) => {
      const output = this.opened();
      if (this.begun) throw new ProtocolError(this.peer, 'it resumes what it has begun');
      this.begun = true;
      const json = await takeTensor(this.peer, uploads, 'what is to be resumed', MAX_UNITS_BYTES);
      const { shards, units } = readJson(this.peer, 'what is to be resumed', json, resumeParams.parse);
      const layouts: ShardLayout[] = [];
      let room = MAX_UNITS_BYTES;
      for (const { file, bytes } of shards) {
        const layout = await this.takeLayout(file, bytes, uploads, room);
        room -= layout.header.byteLength;
        layouts.push(layout);
      }
      const tell = progressTeller(event);
      await output.resume(layouts, units, tell);
      await tensors([jsonPiece(output.finishedEntries)]);
      return null;
    },

    reserve: async (params, { uploads }) => {
      const { file, bytes } = checkParams(this.peer, '"reserve"', reserveParams, params);
      this.begun = true;
      await this.opened().reserve(await this.takeLayout(file, bytes, uploads));
    },

    write: async (_params, { uploads, event }) => {
      const output = this.opened();
      for (;;) {
        const { value: piece, done } = await this.nextPiece(uploads);
        if (done) break;
        if (piece.name === DONE) this.finish(output, await this.takeDone(piece, uploads), event);
        else await this.writePiece(output, piece);
      }
      for (const unit of this.waiting.keys())
        if (!output.covers(unit))
          throw new ProtocolError(this.peer, `not all of "${unit.id}" came, which it calls done`);
      await Promise.all(this.waiting.values());
      if (this.failure) throw this.failure;
    },

    file: async (params, { uploads }) => {
      const { file, bytes } = checkParams(this.peer, '"file"', fileParams, params);
      const { hooks, peer } = this;
      let written = 0;
      const content = async function* (): AsyncGenerator<Uint8Array> {
        for await (const { data } of uploads) {
          written += data.byteLength;
          hooks.onBytes?.(written);
          yield data;
        }
        if (written !== bytes) throw new ProtocolError(peer, `${file} came with ${written} of ${bytes} bytes`);
      };
      await this.opened().writeFile(file, bytes, content());
    },

    commit: async (params) => {
      const { last } = checkParams(this.peer, '"commit"', commitParams, params);
      await this.opened().commit(last);
      this.output = undefined;
      this.finished = true;
    },

    abandon: async (params) => {
      const { keep } = checkParams(this.peer, '"abandon"', abandonParams, params);
      await this.end(keep);
      return { kept: this.kept };
    },
  };

  private opened(): OutputFolder {
    if (!this.output) throw new ProtocolError(this.peer, 'it writes before "create"');
    return this.output;
  }

  private async takeLayout(
    file: string,
    bytes: number,
    uploads: AsyncIterator<TensorPiece>,
    room = MAX_HEADER,
  ): Promise<ShardLayout> {
    const most = Math.min(MAX_HEADER, bytes, room);
    const header = await takeTensor(this.peer, uploads, `the header of ${file}`, most);
    const length = parseHeaderLength(header, bytes, file);
    const { tensors } = parseHeader(header.subarray(LENGTH_BYTES, LENGTH_BYTES + length), bytes, file);
    return {
      file,
      header,
      bytes,
      tensors: tensors.map(({ name, dtype, shape, start, end }) => ({ name, dtype, shape, bytes: end - start })),
    };
  }

  private async writePiece(output: OutputFolder, { name, bytes, offset: within, data }: TensorPiece): Promise<void> {
    const place = parsePieceName(name);
    if (!place) throw new ProtocolError(this.peer, `"${name}" is no part of a tensor`);
    const { tensor, offset, sha256 } = place;
    // With the last of it all of it is there, and so its hash is right.
    const isLast = within + data.byteLength === bytes;
    const hashes = sha256 === undefined ? undefined : isLast ? [{ start: offset, end: offset + bytes, sha256 }] : [];
    await output.write(tensor, offset + within, data, hashes);
    this.bytes += data.byteLength;
    this.hooks.onBytes?.(this.bytes);
  }

  private async takeDone(
    first: TensorPiece,
    uploads: AsyncIterator<TensorPiece>,
  ): Promise<DoneParams & { bytes: number }> {
    const json = await takeTensor(this.peer, uploads, 'a finished unit', MAX_WAITING_BYTES, first);
    return { ...readJson(this.peer, 'a finished unit', json, doneParams.parse), bytes: json.byteLength };
  }

  /** Throws as well what went wrong with a finished unit meanwhile. */
  private nextPiece(uploads: AsyncIterator<TensorPiece>): Promise<IteratorResult<TensorPiece>> {
    return new Promise((resolve, reject) => {
      this.fail = (error) => {
        this.failure ??= error;
        reject(error);
      };
      if (this.failure) reject(this.failure);
      else uploads.next().then(resolve, reject);
    });
  }

  /** Some of it may still be on its way; what follows does not wait for that. */
  private finish(
    output: OutputFolder,
    { unit, note, bytes }: DoneParams & { bytes: number },
    event: Reply['event'],
  ): void {
    this.waitingBytes += bytes;
    if (this.waitingBytes > MAX_WAITING_BYTES) throw new ProtocolError(this.peer, 'too much waits to be finished');
    const over = output
      .finish(unit, note)
      .then(() => {
        this.waiting.delete(unit);
        this.waitingBytes -= bytes;
        return event({ done: unit.id });
      })
      .catch((error) => this.fail(error));
    this.waiting.set(unit, over);
  }

  /** Leaves what can be continued, unless that is not wanted; removes the rest. */
  async end(keep = true): Promise<void> {
    const { output } = this;
    this.output = undefined;
    if (output) this.kept = await output.abandon(keep);
  }
}

/** Often enough for a progress bar. What cannot be told any more is thrown: nobody waits for the rest. */
function progressTeller(event: (value: unknown) => Promise<void>): (bytes: number) => void {
  let last = Number.NEGATIVE_INFINITY;
  let failure: unknown;
  return (bytes) => {
    if (failure) throw failure;
    if (performance.now() - last < PROGRESS_MS) return;
    last = performance.now();
    event({ bytes }).catch((error) => {
      failure = error;
    });
  };
}
