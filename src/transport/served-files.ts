/** Files of a folder on another machine, read by ranges. */
import { z } from 'zod';
import { ProtocolError, ReadError, RemoteChangedError, SessionLostError } from '../errors.js';
import { listOf } from '../list-of.js';
import type { Channel } from './channel.js';
import { checkParams } from './check-params.js';
import { type ConnectOptions, connect } from './connect.js';
import { jsonAnswer, jsonPiece } from './json-tensor.js';
import { MAX_NAME_LENGTH, MAX_PAYLOAD_BYTES } from './limits.js';
import { answerRequests, createRequester, type Requester } from './requests.js';
import type { TensorPiece } from './tensor-piece.js';

/** Reads ranges of files, local or of a peer. */
export interface RangeSource {
  /** Fills `target` with the bytes of `file` from `position` on. Throws if the file ends before `target` is full. */
  read(file: string, position: number, target: Uint8Array): Promise<void>;
}

/** A file's name and version. */
export interface FileInfo {
  readonly file: string;
  readonly bytes: number;
  /** Time of the last change, milliseconds since 1970. It tells a file from another that replaced it. */
  readonly modified: number;
  /** It is a link whose target is missing, so it cannot be read. */
  readonly dangling?: boolean | undefined;
}

/** Files that `offerFiles` offers and `connectFiles` reads. */
export interface FileSource extends RangeSource {
  list(): Promise<readonly FileInfo[]>;
}

/** Name of the service that offers files. */
export const FILE_SERVICE = 'files';

/** Published checkpoints have about 200 files. This is enough for 10 000. */
const MAX_LIST_BYTES = 2 * 1024 * 1024;

const fileInfo = z.strictObject({
  file: z.string().min(1).max(MAX_NAME_LENGTH),
  bytes: z.int().nonnegative(),
  modified: z.number(),
  dangling: z.boolean().optional(),
});
const range = z.strictObject({
  file: z.string().min(1).max(MAX_NAME_LENGTH),
  start: z.int().nonnegative(),
  end: z.int().nonnegative(),
});

/** Answers one peer that reads files. Only files that `list` names can be read. */
export async function offerFiles(channel: Channel, source: FileSource): Promise<void> {
  const files = new Map((await source.list()).map((info) => [info.file, info]));
  await answerRequests(channel, channel, {
    async list(_params, reply) {
      await reply.tensors([jsonPiece([...files.values()])]);
    },
    async read(params, reply) {
      const { file, start, end } = checkParams(channel.peer, '"read"', range, params);
      const info = files.get(file);
      if (!info) throw new ReadError(file, start, 'no such file is offered');
      if (start >= end || end > info.bytes) throw new ReadError(file, start, `it has ${info.bytes} bytes, not ${end}`);
      await reply.tensors(readPieces(source, file, start, end));
    },
  });
}

/** A range of a file as a tensor of bytes. Each piece has its own memory, because the channel keeps it until it has arrived. */
async function* readPieces(source: RangeSource, file: string, start: number, end: number): AsyncGenerator<TensorPiece> {
  const bytes = end - start;
  for (let offset = 0; offset < bytes; offset += MAX_PAYLOAD_BYTES) {
    const data = new Uint8Array(Math.min(MAX_PAYLOAD_BYTES, bytes - offset));
    await source.read(file, start + offset, data);
    yield { name: file, dtype: 'U8', shape: [bytes], bytes, offset, data };
  }
}

/** A peer's files. `close` ends the conversation. */
export interface RemoteFiles extends FileSource {
  close(): Promise<void>;
}

/**
 * Connects to a peer that offers files. Several reads may run at once. If the peer restarts, a read continues at the byte that
 * it had reached. Throws the errors of `connect`. Reads throw a `RemoteError` if the peer cannot read, and a
 * `RemoteChangedError` if the files changed.
 */
export async function connectFiles(url: string, options: Omit<ConnectOptions, 'service'>): Promise<RemoteFiles> {
  const open = async (): Promise<{ channel: Channel; ask: Requester }> => {
    const channel = await connect(url, { ...options, service: FILE_SERVICE });
    return { channel, ask: createRequester(channel) };
  };
  let session = open();
  const files = await listFiles(await session);
  /** Opens one new session, even if several reads find that the old one is lost. */
  const renew = async (lost: typeof session): Promise<void> => {
    if (session === lost)
      session = open().then(async (opened) => {
        if (JSON.stringify(await listFiles(opened)) !== JSON.stringify(files))
          throw new RemoteChangedError(opened.channel.peer);
        return opened;
      });
    await session;
  };
  return {
    list: () => Promise.resolve(files),
    async read(file, position, target) {
      for (let done = 0; done < target.byteLength; ) {
        const current = session;
        const { ask, channel } = await current;
        const start = position + done;
        try {
          const params = { file, start, end: position + target.byteLength };
          const onPiece = ({ name, bytes, data }: TensorPiece): void => {
            if (name !== file || bytes !== params.end - start)
              throw new ProtocolError(channel.peer, 'it sends another range than the requested one');
            target.set(data, done);
            done += data.byteLength;
          };
          await ask('read', params, { onPiece });
          if (done < target.byteLength) throw new ProtocolError(channel.peer, `it sends only a part of ${file}`);
        } catch (error) {
          if (!(error instanceof SessionLostError)) throw error;
          await renew(current);
        }
      }
    },
    async close() {
      const opened = await session.catch(() => undefined); // the reads have already thrown this error
      await opened?.channel.close();
    },
  };
}

async function listFiles({ channel, ask }: { channel: Channel; ask: Requester }): Promise<FileInfo[]> {
  const answer = jsonAnswer(channel.peer, 'its list of files', MAX_LIST_BYTES);
  await ask('list', null, answer.exchange);
  const list = answer.read((value) => listOf(fileInfo).parse(value));
  if (!list) throw new ProtocolError(channel.peer, 'its list of files did not come');
  return list;
}
