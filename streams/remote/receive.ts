import type { Readable } from 'node:stream';
import { LENGTH_BYTES, parseHeader, parseHeaderLength } from '../../src/checkpoint/header.js';
import type { Output } from '../../src/checkpoint/output-folder.js';
import type { WantedOutput } from '../../src/conversion/existing-output.js';
import { BusyError, ProtocolError, TruncatedStreamError } from '../../src/errors.js';
import { readByteStream } from '../../src/transport/byte-stream.js';
import { checkParams } from '../../src/transport/check-params.js';
import { jsonPiece } from '../../src/transport/json-answer.js';
import { type Listener, listen } from '../../src/transport/listen.js';
import { answerRequests, type Handler } from '../../src/transport/requests.js';
import { openFolder } from '../open-output.js';
import { collector } from './collect.js';
import {
  commitParams,
  createParams,
  fileParams,
  MAX_HEADER,
  OUTPUT_SERVICE,
  parsePieceName,
  reserveParams,
} from './output-protocol.js';
import type { ListenAt, ServiceHooks } from './peer-options.js';

export interface ReceiveHooks extends ServiceHooks {
  /** Bytes of tensors written so far. */
  readonly onBytes?: (bytes: number) => void;
}

export interface Receiver extends Listener {
  /** Resolves once a result is whole under its final name, or was there already. */
  readonly done: Promise<void>;
}

/**
 * Keeps in `folder` the result of a conversion that runs elsewhere: one at a time, until one is whole. What is not finished
 * is removed, as where a conversion runs here.
 */
export async function receive(folder: string, at: ListenAt, hooks: ReceiveHooks = {}): Promise<Receiver> {
  let resolveDone: () => void = () => {};
  const done = new Promise<void>((resolve) => {
    resolveDone = resolve;
  });
  let busy = false;
  const listener = await listen({ ...at, service: OUTPUT_SERVICE, ...hooks }, async (channel) => {
    if (busy) throw new BusyError(folder);
    busy = true;
    const session = new OutputSession(channel.peer, folder, hooks);
    try {
      hooks.onLog?.(`${channel.peer} writes ${folder}`);
      await answerRequests(channel, channel, session.handlers);
      hooks.onLog?.(session.finished ? `${folder} is whole` : `${channel.peer} left before the end`);
    } finally {
      await session.end();
      busy = false;
      if (session.finished) resolveDone();
    }
  });
  return { ...listener, done };
}

/** The same from a pipe: what `mobe stream` or a conversion to "-" wrote. Throws a `TruncatedStreamError` where it ends early. */
export async function receivePipe(folder: string, input: Readable, hooks: ReceiveHooks = {}): Promise<void> {
  const peer = 'standard input';
  const session = new OutputSession(peer, folder, hooks);
  try {
    await answerRequests(readByteStream(input, OUTPUT_SERVICE, peer), undefined, session.handlers);
    if (!session.finished) throw new TruncatedStreamError(peer);
  } finally {
    await session.end();
  }
}

/** One conversation about one output. */
class OutputSession {
  private output: Output | undefined;
  private bytes = 0;
  /** The result is whole. */
  finished = false;

  constructor(
    private readonly peer: string,
    private readonly folder: string,
    private readonly hooks: ReceiveHooks,
  ) {}

  readonly handlers: Readonly<Record<string, Handler>> = {
    create: async (params, { tensors }) => {
      if (this.output || this.finished) throw new ProtocolError(this.peer, 'it creates an output twice');
      const { wanted, neededBytes, force } = checkParams(this.peer, '"create"', createParams, params);
      const opened = await openFolder(
        this.folder,
        { wanted: wanted as WantedOutput, neededBytes, inputs: [] },
        { force },
      );
      if ('output' in opened) {
        this.output = opened.output;
        return null;
      }
      this.finished = true;
      await tensors([jsonPiece(opened.done)]);
      return null;
    },

    reserve: async (params, { uploads }) => {
      const { file, bytes } = checkParams(this.peer, '"reserve"', reserveParams, params);
      const first = await uploads.next();
      if (first.done) throw new ProtocolError(this.peer, `the header of ${file} did not come`);
      if (first.value.bytes > Math.min(MAX_HEADER, bytes))
        throw new ProtocolError(this.peer, `the header of ${file} has ${first.value.bytes} bytes`);
      const parts = collector(this.peer, new Map([['header', first.value.bytes]]));
      parts.put(first.value);
      for await (const piece of uploads) parts.put(piece);
      const header = parts.finish()('header');
      const length = parseHeaderLength(header, bytes, file);
      const { tensors } = parseHeader(header.subarray(LENGTH_BYTES, LENGTH_BYTES + length), bytes, file);
      await this.opened().reserve({
        file,
        header,
        bytes,
        tensors: tensors.map(({ name, dtype, shape, start, end }) => ({ name, dtype, shape, bytes: end - start })),
      });
    },

    write: async (_params, { uploads }) => {
      const output = this.opened();
      for await (const { name, offset: within, data } of uploads) {
        const place = parsePieceName(name);
        if (!place) throw new ProtocolError(this.peer, `"${name}" is no part of a tensor`);
        await output.write(place.tensor, place.offset + within, data);
        this.bytes += data.byteLength;
        this.hooks.onBytes?.(this.bytes);
      }
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
  };

  private opened(): Output {
    if (!this.output) throw new ProtocolError(this.peer, 'it writes before "create"');
    return this.output;
  }

  /** What is not whole is removed. */
  async end(): Promise<void> {
    await this.output?.abandon();
    this.output = undefined;
  }
}
