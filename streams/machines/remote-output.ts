/** The sink of a conversion on another machine (receive.ts), over a channel or a pipe. */
import { once } from 'node:events';
import { PassThrough } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseReport } from '../../src/conversion/stored-report.js';
import { InterruptedError } from '../../src/errors.js';
import { type PartEntry, partsOf } from '../../src/output/journal.js';
import type { ShardLayout } from '../../src/output/layout.js';
import type { HashedPart } from '../../src/output/manifest.js';
import type { Output } from '../../src/output/output-folder.js';
import { type FinishedUnits, finishedUnits, type Unit } from '../../src/output/unfinished-run.js';
import { writeByteStream } from '../../src/transport/byte-stream.js';
import type { Channel } from '../../src/transport/channel.js';
import { checkParams } from '../../src/transport/check-params.js';
import { connect } from '../../src/transport/connect.js';
import { jsonAnswer, jsonPiece } from '../../src/transport/json-tensor.js';
import { createRequester, createTeller, type Requester } from '../../src/transport/requests.js';
import { type TensorPiece, wholePiece } from '../../src/transport/tensor-piece.js';
import { revived } from '../compute/revive-error.js';
import { openStateFolder, type StateFolder } from '../compute/state-folder.js';
import type { OpenedOutput, OutputRequest } from '../operations/open-folder.js';
import type { RunOptions } from '../run-options.js';
import {
  abandonAnswer,
  createAnswer,
  DONE,
  doneEvent,
  MAX_RECORD_BYTES,
  MAX_UNITS_BYTES,
  OUTPUT_SERVICE,
  pieceName,
  resumeAnswer,
  resumeEvent,
} from './output-protocol.js';

/** How long the machine of an output that is given up is waited for: what has come may still have to be written. */
const LEAVE_WITHIN_MS = 3_000;

/** Opens an output on the machine at `url`. It checks room and what is there before anything is computed here. */
export async function remoteOutput(url: string, request: OutputRequest, run: RunOptions): Promise<OpenedOutput> {
  const channel = await connect(url, { ...run.peers, service: OUTPUT_SERVICE });
  const ask = createRequester(channel);
  try {
    const { identity } = request;
    const record = jsonAnswer(channel.peer, 'the record of its result', MAX_RECORD_BYTES);
    const answer = await revived(
      ask('create', createRequest(request, run), {
        ...record.exchange,
        ...(identity && { uploads: [jsonPiece(identity.identity)] }),
      }),
    );
    const { unfinished } = checkParams(channel.peer, 'its answer', createAnswer, answer);
    const done = record.read(parseReport);
    if (done) {
      await channel.close();
      return { done };
    }
    const states =
      identity && (await openStateFolder(channel.peer, identity.identity, run.force ?? false, run.fileSystem));
    return { output: new RemoteOutput(channel, ask, identity !== undefined, unfinished, states) };
  } catch (error) {
    channel.fail(error as Error);
    throw error;
  }
}

/** Writes to standard output what `mobe receive <out> -` reads. Nobody answers: room and the like are found out at the other end. */
export async function pipeOutput(_pipe: string, request: OutputRequest, run: RunOptions): Promise<OpenedOutput> {
  const sink = writeByteStream(process.stdout, OUTPUT_SERVICE);
  const tell = createTeller(sink);
  await tell('create', createRequest(request, run));
  return { output: new PipeOutput(tell, () => sink.close()) };
}

const createRequest = ({ wanted, neededBytes }: OutputRequest, { force = false }: RunOptions) => {
  const { kind, sourceFingerprint, settings } = wanted;
  return { wanted: { kind, sourceFingerprint, settings }, neededBytes, force };
};

abstract class SentOutput implements Output {
  readonly retains = true; // pieces are kept until the other side has them
  private lost: (error: Error) => void = () => {};
  private writing: { pieces: PassThrough; answer: Promise<unknown> } | undefined;
  /** Given up: what is still on its way here goes nowhere. */
  protected leaving = false;

  constructor(
    protected readonly ask: Requester,
    private readonly close: () => Promise<void>,
  ) {}

  abstract abandon(keep?: boolean): Promise<boolean>;

  async reserve({ file, bytes, header }: ShardLayout): Promise<void> {
    await this.request('reserve', { file, bytes }, { uploads: [wholePiece('header', header)] });
  }

  async write(tensor: string, offset: number, data: Uint8Array, hashes?: readonly HashedPart[]): Promise<void> {
    if (data.byteLength === 0) return;
    const whole = { start: offset, end: offset + data.byteLength };
    for (const { start, end, sha256 } of hashes ?? [{ ...whole, sha256: undefined }])
      await this.push(wholePiece(pieceName(tensor, start, sha256), data.subarray(start - offset, end - offset)));
  }

  async writeText(file: string, text: string): Promise<void> {
    const data = new TextEncoder().encode(text);
    const uploads = data.byteLength ? [wholePiece(file, data)] : [];
    await this.request('file', { file, bytes: data.byteLength }, { uploads });
  }

  async writeFile(file: string, bytes: number, content: AsyncIterable<Uint8Array>): Promise<void> {
    await this.request('file', { file, bytes }, { uploads: filePieces(file, bytes, content) });
  }

  async commit(last: readonly string[]): Promise<void> {
    await this.request('commit', { last: [...last] });
    await this.close();
  }

  onLost(listener: (error: Error) => void): void {
    this.lost = listener;
  }

  /** By the other side, while it writes. */
  protected told(_event: unknown): void {}

  /** The other side cannot write any more. */
  protected broken(error: Error): void {
    this.lost(error);
  }

  /** Parts go out in one long request, as they come. */
  protected async push(piece: TensorPiece): Promise<void> {
    if (this.leaving) throw new InterruptedError();
    this.writing ??= this.startWriting();
    const { pieces, answer } = this.writing;
    if (pieces.destroyed) await answer; // throws
    const roomy = pieces.write(piece);
    if (!roomy) await Promise.race([once(pieces, 'drain'), answer]);
  }

  private startWriting() {
    const pieces = new PassThrough({ objectMode: true, highWaterMark: 1 });
    pieces.on('error', () => {}); // whoever writes is told
    const onEvent = (event: unknown): void => this.told(event);
    const answer = this.ask('write', null, { uploads: pieces as AsyncIterable<TensorPiece>, onEvent });
    answer.catch((error) => {
      pieces.destroy(error);
      this.broken(error);
    });
    return { pieces, answer };
  }

  protected async finishWriting(): Promise<void> {
    if (!this.writing) return;
    const { pieces, answer } = this.writing;
    this.writing = undefined;
    pieces.end();
    await answer;
  }

  private async request(...args: Parameters<Requester>): Promise<void> {
    await this.finishWriting();
    await this.ask(...args);
  }
}

/** One way: what is cut short is nothing. */
class PipeOutput extends SentOutput {
  async abandon(): Promise<boolean> {
    process.stdout.destroy(); // the reader takes it for what it is
    return false;
  }
}

class RemoteOutput extends SentOutput {
  readonly elsewhere = true;
  finishedParts: readonly PartEntry[] = [];
  declare readonly workspace?: string;
  private readonly finishing = new Map<string, { resolve(): void; reject(error: Error): void }>();
  /** The other side has something of it. */
  private begun: boolean;

  /**
   * @param unfinished an interrupted run of the same identity is there
   * @param states where those of fits are saved, if the run can be continued
   */
  constructor(
    private readonly channel: Channel,
    ask: Requester,
    private readonly resumable: boolean,
    private readonly unfinished: boolean,
    private readonly states: StateFolder | undefined,
  ) {
    super(ask, () => channel.close());
    this.begun = unfinished;
    if (states) this.workspace = states.path;
    // Also while nothing is asked: a fit must not run on for hours beside a receiver that is gone.
    void channel.whenOver.then((error) => error && this.broken(error));
  }

  async resume(
    layouts: readonly ShardLayout[],
    units: readonly Unit[],
    onBytes: (bytes: number) => void,
  ): Promise<FinishedUnits> {
    if (!this.unfinished) return new Map();
    const { peer } = this.channel;
    const answer = jsonAnswer(peer, 'what it has of this run', MAX_UNITS_BYTES);
    const shards = layouts.map(({ file, bytes }) => ({ file, bytes }));
    await this.ask('resume', null, {
      ...answer.exchange,
      onEvent: (event) => onBytes(checkParams(peer, 'its progress', resumeEvent, event).bytes),
      uploads: [jsonPiece({ shards, units }), ...layouts.map(({ file, header }) => wholePiece(file, header))],
    });
    const { finished, entries } = finishedUnits(units, answer.read((value) => resumeAnswer.parse(value)) ?? []);
    this.finishedParts = partsOf(entries);
    return finished;
  }

  override async write(...part: Parameters<SentOutput['write']>): Promise<void> {
    await super.write(...part);
    this.begun = true;
  }

  /** The other side waits for what is still on its way. */
  async finish(unit: Unit, note: unknown): Promise<void> {
    const noted = new Promise<void>((resolve, reject) => this.finishing.set(unit.id, { resolve, reject }));
    noted.catch(() => {}); // told by `push` as well
    await this.push(jsonPiece({ unit, note }, DONE));
    await noted;
  }

  protected override told(event: unknown): void {
    const { done } = checkParams(this.channel.peer, 'what it has done', doneEvent, event);
    this.finishing.get(done)?.resolve();
    this.finishing.delete(done);
  }

  protected override broken(error: Error): void {
    for (const { reject } of this.finishing.values()) reject(error);
    super.broken(error);
  }

  override async commit(last: readonly string[]): Promise<void> {
    await super.commit(last);
    await this.states?.leave(false);
  }

  async abandon(keep = false): Promise<boolean> {
    this.leaving = true;
    const patience = new AbortController();
    const kept = await Promise.race([
      this.leave(keep).catch(() => undefined),
      sleep(LEAVE_WITHIN_MS, undefined, { signal: patience.signal }).catch(() => undefined),
    ]);
    patience.abort();
    this.channel.fail(new InterruptedError()); // unless it has ended in peace
    const statesKept = await this.states?.leave(keep);
    // A machine that is gone has what it had.
    return statesKept || (kept ?? (keep && this.resumable && this.begun));
  }

  private async leave(keep: boolean): Promise<boolean> {
    await this.finishWriting().catch(() => {}); // what it has of it by then
    const answer = await this.ask('abandon', { keep });
    const { kept } = checkParams(this.channel.peer, 'its answer', abandonAnswer, answer);
    await this.channel.close().catch(() => {});
    return kept;
  }
}

async function* filePieces(
  name: string,
  bytes: number,
  content: AsyncIterable<Uint8Array>,
): AsyncGenerator<TensorPiece> {
  let offset = 0;
  for await (const data of content) {
    yield { name, dtype: 'U8', shape: [bytes], bytes, offset, data };
    offset += data.byteLength;
  }
}
