/** The sink of a conversion on another machine (receive.ts), over a channel or a pipe. */
import { once } from 'node:events';
import { PassThrough } from 'node:stream';
import type { Output } from '../../src/checkpoint/output-folder.js';
import { parseReport } from '../../src/conversion/stored-report.js';
import { InterruptedError } from '../../src/errors.js';
import { writeByteStream } from '../../src/transport/byte-stream.js';
import { connect } from '../../src/transport/connect.js';
import { jsonAnswer } from '../../src/transport/json-answer.js';
import { createRequester, createTeller, type Requester } from '../../src/transport/requests.js';
import { type TensorPiece, wholePiece } from '../../src/transport/tensor-piece.js';
import type { OpenedOutput, OutputRequest } from '../open-output.js';
import type { RunOptions } from '../progress.js';
import { MAX_RECORD_BYTES, OUTPUT_SERVICE, pieceName } from './output-protocol.js';

/** As a location: standard output, or standard input. */
export const PIPE = '-';

/** Opens an output on the machine at `url`. It checks room and what is there before anything is computed here. */
export async function remoteOutput(url: string, request: OutputRequest, run: RunOptions): Promise<OpenedOutput> {
  const channel = await connect(url, { ...run.peers, service: OUTPUT_SERVICE });
  const ask = createRequester(channel);
  try {
    const { wanted, neededBytes } = request;
    const answer = jsonAnswer(channel.peer, 'the record of its result', MAX_RECORD_BYTES);
    const params = { wanted: plainWanted(wanted), neededBytes, force: run.force ?? false };
    await ask('create', params, answer.exchange);
    const done = answer.read(parseReport);
    if (done) {
      await channel.close();
      return { done };
    }
  } catch (error) {
    channel.fail(error as Error);
    throw error;
  }
  return {
    output: outputOver(
      ask,
      () => channel.close(),
      (reason) => channel.fail(reason),
    ),
  };
}

/** Writes to standard output what `mobe receive <out> -` reads. Nobody answers: room and the like are found out at the other end. */
export async function pipeOutput({ wanted, neededBytes }: OutputRequest): Promise<Output> {
  const sink = writeByteStream(process.stdout, OUTPUT_SERVICE);
  const tell = createTeller(sink);
  await tell('create', { wanted: plainWanted(wanted), neededBytes, force: false });
  return outputOver(
    tell,
    () => sink.close(),
    () => process.stdout.destroy(), // the reader takes it for what it is: cut short
  );
}

const plainWanted = ({ kind, sourceFingerprint, settings }: OutputRequest['wanted']) => ({
  kind,
  sourceFingerprint,
  settings,
});

function outputOver(ask: Requester, close: () => Promise<void>, fail: (reason: Error) => void): Output {
  let lost: (error: Error) => void = () => {};
  let writing: { pieces: PassThrough; answer: Promise<unknown> } | undefined;
  /** Parts go out in one long request, as they come. */
  const startWriting = () => {
    const pieces = new PassThrough({ objectMode: true, highWaterMark: 1 });
    pieces.on('error', () => {}); // whoever writes is told
    const answer = ask('write', null, { uploads: pieces as AsyncIterable<TensorPiece> });
    answer.catch((error) => {
      pieces.destroy(error);
      lost(error);
    });
    return { pieces, answer };
  };
  const finishWriting = async (): Promise<void> => {
    if (!writing) return;
    const { pieces, answer } = writing;
    writing = undefined;
    pieces.end();
    await answer;
  };
  const request = async (...args: Parameters<Requester>): Promise<void> => {
    await finishWriting();
    await ask(...args);
  };
  const output: Output = {
    retains: true, // pieces are kept until the peer has them
    reserve: ({ file, bytes, header }) =>
      request('reserve', { file, bytes }, { uploads: [wholePiece('header', header)] }),
    async write(tensor, offset, data) {
      if (data.byteLength === 0) return;
      writing ??= startWriting();
      const { pieces, answer } = writing;
      if (pieces.destroyed) await answer; // throws
      const roomy = pieces.write(wholePiece(pieceName(tensor, offset), data));
      if (!roomy) await Promise.race([once(pieces, 'drain'), answer]);
    },
    writeText: (file, text) => {
      const data = new TextEncoder().encode(text);
      return request(
        'file',
        { file, bytes: data.byteLength },
        { uploads: data.byteLength ? [wholePiece(file, data)] : [] },
      );
    },
    writeFile: (file, bytes, content) =>
      request('file', { file, bytes }, { uploads: filePieces(file, bytes, content) }),
    async commit(last) {
      await request('commit', { last: [...last] });
      await close();
    },
    onLost(listener) {
      lost = listener;
    },
    async abandon() {
      writing?.pieces.destroy();
      fail(new InterruptedError());
      return false;
    },
  };
  return output;
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
