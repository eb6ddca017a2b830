/** Requests that fail while tensors are uploaded: which side gets the error, when, and whether the conversation continues. */
import { PassThrough } from 'node:stream';
import { describe, expect, test } from 'vitest';
import { startClient, startServer } from '../../fixtures/peers.js';
import { ProtocolError, RemoteError } from '../errors.js';
import { jsonAnswer } from './json-tensor.js';
import { answerRequests, createRequester, type Handler, type Requester } from './requests.js';
import { type TensorPiece, wholePiece } from './tensor-piece.js';

const HANDLERS: Record<string, Handler> = {
  echo: async (params) => params,
  count: async (_params, { uploads }) => {
    let count = 0;
    for await (const _ of uploads) count++;
    return count;
  },
  refuse: async (_params, { uploads }) => {
    await uploads.next();
    throw new RangeError('no room');
  },
};

async function open(handlers = HANDLERS): Promise<Requester> {
  const server = await startServer((channel) => answerRequests(channel, channel, handlers));
  return createRequester(await startClient(server.url));
}

const piece = (name: string): TensorPiece => wholePiece(name, Uint8Array.of(1));

test('what fails there is told at once, though more is to come along; then the conversation goes on', async () => {
  const ask = await open();
  const pieces = new PassThrough({ objectMode: true });
  pieces.write(piece('first'));
  const refused = ask('refuse', null, { uploads: pieces as AsyncIterable<TensorPiece> });
  await expect(refused).rejects.toThrow(RemoteError);
  await expect(refused).rejects.toThrow('no room');
  pieces.end(piece('last'));
  expect(await ask('echo', 3)).toBe(3);
});

test('what fails here, while it comes along, is thrown as it is; then the conversation goes on', async () => {
  const ask = await open();
  const failing = async function* (): AsyncGenerator<TensorPiece> {
    yield piece('first');
    throw new RangeError('the disk is gone');
  };
  await expect(ask('count', null, { uploads: failing() })).rejects.toThrow(RangeError);
  expect(await ask('count', null, { uploads: [piece('a'), piece('b')] })).toBe(2);
});

test('an answer that ends before all has come is a breach', async () => {
  const server = await startServer(async (channel) => {
    await channel.receive();
    await channel.send({ kind: 'end', value: null });
    while (await channel.receive());
  });
  const ask = createRequester(await startClient(server.url));
  const pieces = new PassThrough({ objectMode: true });
  const answer = ask('count', null, { uploads: pieces as AsyncIterable<TensorPiece> });
  await expect(answer).rejects.toThrow(ProtocolError);
  await expect(answer).rejects.toThrow('before all of it has come');
  pieces.end();
});

describe('an answer of JSON', () => {
  test('comes in pieces', () => {
    const answer = jsonAnswer('a peer', 'its list', 100);
    for (const text of ['[1, ', '2]']) answer.exchange.onPiece(wholePiece('json', Buffer.from(text)));
    expect(answer.read((value) => value)).toEqual([1, 2]);
  });

  test('may be none', () => expect(jsonAnswer('a peer', 'its list', 100).read((value) => value)).toBeUndefined());

  test('has its limit in all, not in each tensor', () => {
    const answer = jsonAnswer('a peer', 'its list', 100);
    const add = () => answer.exchange.onPiece(wholePiece('json', new Uint8Array(60)));
    add();
    expect(add).toThrow('its list has more than 100 bytes');
  });
});
