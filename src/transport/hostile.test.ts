/** In each test one peer misbehaves. The server must name the fault and drop the peer, and another peer must not notice. */
import { once } from 'node:events';
import { connect as connectTcp } from 'node:net';
import { describe, expect, test } from 'vitest';
import {
  echo,
  isEchoed,
  type RawPeer,
  rawFrame,
  rawHello,
  seededBytes,
  startClient,
  startRawPeer,
  startServer,
  type TestServer,
} from '../../fixtures/peers.js';
import {
  ChecksumError,
  FloodError,
  type MobeError,
  PeerLostError,
  PeerTimeoutError,
  ProtocolError,
  ProtocolVersionError,
  TruncatedStreamError,
  WrongServiceError,
} from '../errors.js';
import type { Channel } from './channel.js';
import { MAX_FRAME_BYTES, MIN_CREDIT_BYTES } from './limits.js';
import type { ListenOptions } from './listen.js';
import { receiveTensors } from './receive-tensors.js';

type ErrorClass = new (...args: never[]) => MobeError;

/** A server, a peer to misbehave and one that must not notice. */
async function together(
  converse: (channel: Channel) => Promise<void>,
  options: Partial<ListenOptions> = {},
): Promise<{ server: TestServer; hostile: RawPeer; unaffected: () => Promise<void> }> {
  const server = await startServer((channel) => (first ? neighbour(channel) : converse(channel)), options);
  let first = true;
  const neighbour = (channel: Channel): Promise<void> => {
    first = false;
    return echo(channel);
  };
  const other = await startClient(server.url, { silenceTimeoutMs: 500 });
  expect(await isEchoed(other, 'before')).toBe(true);
  const hostile = await startRawPeer(server.url);
  const unaffected = async (): Promise<void> => expect(await isEchoed(other, 'after')).toBe(true);
  return { server, hostile, unaffected };
}

const readAll = async (channel: Channel): Promise<void> => {
  for await (const _ of receiveTensors(channel));
};
const tensor = { kind: 'tensor', seq: 0, tensor: 0, name: 'w', dtype: 'U8', shape: [8], bytes: 8 };
const data = { kind: 'data', seq: 1, tensor: 0 };
const eight = seededBytes(8, 1);
/** Computed as in checksum.test.ts. */
const checksum = Buffer.from('2af1b52c6f9b274d0b1faf4980baea07', 'hex');
const end = (seq: number): unknown => ({ kind: 'end', seq, value: null });

test('the honest version of what follows is accepted', async () => {
  let received: Uint8Array | undefined;
  const { server, hostile, unaffected } = await together(async (channel) => {
    for await (const piece of receiveTensors(channel)) received = piece.data;
    await channel.send({ kind: 'end', value: null });
  });
  hostile.send(rawHello());
  hostile.send(tensor);
  hostile.send({ ...data, checksum }, eight);
  hostile.send(end(2));
  await hostile.expect('end');
  expect(Buffer.from(received as Uint8Array).equals(eight)).toBe(true);
  expect(server.problems).toEqual([]);
  await unaffected();
});

describe('dropped is a peer that, before its hello,', () => {
  test.each<[string, (peer: RawPeer) => void, ErrorClass, RegExp]>([
    ['sends garbage', ({ ws }) => ws.send(seededBytes(1000, 7)), ProtocolError, /broke the protocol/],
    ['sends text', ({ ws }) => ws.send('hello'), ProtocolError, /it is text/],
    [
      'sends a frame too large',
      ({ ws }) => ws.send(Buffer.alloc(MAX_FRAME_BYTES + 1)),
      ProtocolError,
      /Max payload size/,
    ],
    ['sends something else first', (peer) => peer.send(tensor), ProtocolError, /first is a tensor frame/],
    ['has another version', (peer) => peer.send(rawHello({ protocol: 99 })), ProtocolVersionError, /version 99/],
    ['wants another service', (peer) => peer.send(rawHello({ service: 'x' })), WrongServiceError, /"x"/],
    ['resumes what never was', (peer) => peer.send(rawHello({ resume: true })), ProtocolError, /session is unknown/],
    ['says nothing', () => {}, PeerTimeoutError, /nothing for 0.2 s/],
  ])('%s', async (_, misbehave, errorClass, message) => {
    const { server, hostile, unaffected } = await together(readAll, { helloTimeoutMs: 200 });
    const closed = once(hostile.ws, 'close');
    misbehave(hostile);
    const problem = await server.problem();
    expect(problem).toBeInstanceOf(errorClass);
    expect(problem.message).toMatch(message);
    await closed;
    await unaffected();
  });
});

describe('dropped is a peer that, in a conversation,', () => {
  test.each<[string, (peer: RawPeer) => void, ErrorClass, RegExp]>([
    ['sends garbage', ({ ws }) => ws.send(seededBytes(1000, 7)), ProtocolError, /broke the protocol/],
    [
      'sends a frame too large',
      ({ ws }) => ws.send(Buffer.alloc(MAX_FRAME_BYTES + 1)),
      ProtocolError,
      /Max payload size/,
    ],
    ['says hello again', (peer) => peer.send(rawHello()), ProtocolError, /second hello/],
    [
      'sends a frame twice',
      (peer) => {
        peer.send(tensor);
        peer.send(tensor);
      },
      ProtocolError,
      /number 0, expected is 1/,
    ],
    [
      'sends frames in another order',
      (peer) => {
        peer.send({ ...data, seq: 1 }, eight);
        peer.send({ ...tensor, seq: 0 });
      },
      ProtocolError,
      /number 1, expected is 0/,
    ],
    [
      'leaves a frame out and closes',
      (peer) => {
        peer.send(tensor);
        peer.send({ kind: 'close', sent: 2 });
      },
      ProtocolError,
      /closes after 2 messages, 1 have arrived/,
    ],
    [
      'damages a tensor',
      (peer) => {
        peer.send(tensor);
        peer.send(
          { ...data, checksum },
          Uint8Array.from(eight, (byte, i) => (i === 3 ? byte ^ 16 : byte)),
        );
      },
      ChecksumError,
      /"w".*damaged/,
    ],
    [
      'sends more of a tensor than it announced',
      (peer) => {
        peer.send({ ...tensor, bytes: 7 });
        peer.send({ ...data, checksum }, eight);
      },
      ProtocolError,
      /more than its 7 bytes/,
    ],
    [
      'says that a tensor is whole before it is',
      (peer) => {
        peer.send({ ...tensor, bytes: 2 ** 50 });
        peer.send({ ...data, checksum }, eight);
      },
      ProtocolError,
      /checksum in another frame than its last/,
    ],
    [
      'ends within a tensor',
      (peer) => {
        peer.send({ ...tensor, bytes: 2 ** 50 });
        peer.send({ ...data }, eight);
        peer.send(end(2));
      },
      ProtocolError,
      /in the middle of 1 tensor/,
    ],
    [
      'closes within a tensor',
      (peer) => {
        peer.send(tensor);
        peer.send({ kind: 'close', sent: 1 });
      },
      TruncatedStreamError,
      /ends too early/,
    ],
    [
      'goes on with a tensor that is none',
      (peer) => peer.send({ ...data, seq: 0 }, eight),
      ProtocolError,
      /not under way/,
    ],
    [
      'numbers tensors as it likes',
      (peer) => peer.send({ ...tensor, tensor: 5 }),
      ProtocolError,
      /tensor 5 comes as number 0/,
    ],
    [
      'opens tensors without end',
      (peer) => {
        for (let i = 0; i < 300; i++) peer.send({ ...tensor, seq: i, tensor: i });
      },
      ProtocolError,
      /more than 256 tensors/,
    ],
    [
      'acknowledges what was never sent',
      (peer) => peer.send({ kind: 'ack', consumed: 3 }),
      ProtocolError,
      /3 frames are acknowledged, after 0, of 0 sent/,
    ],
  ])('%s', async (_, misbehave, errorClass, message) => {
    const { server, hostile, unaffected } = await together(readAll);
    hostile.send(rawHello());
    await hostile.expect('hello');
    const closed = once(hostile.ws, 'close');
    misbehave(hostile);
    const problem = await server.problem();
    expect(problem).toBeInstanceOf(errorClass);
    expect(problem.message).toMatch(message);
    // The peer gets an error frame before it is dropped, unless `ws` dropped it.
    await closed;
    await unaffected();
  });

  test('floods beyond its credit', async () => {
    const { server, hostile, unaffected } = await together(
      async (channel) => {
        await channel.receive();
        await new Promise(() => {}); // this reader never continues
      },
      { creditBytes: MIN_CREDIT_BYTES },
    );
    hostile.send(rawHello());
    await hostile.expect('hello');
    hostile.send({ ...tensor, bytes: 2 ** 40 });
    for (let seq = 1; seq < 10; seq++) hostile.send({ ...data, seq }, Buffer.alloc(1 << 20));
    expect(await server.problem()).toBeInstanceOf(FloodError);
    expect(await hostile.expect('error')).toMatchObject({ code: 'flood' });
    await unaffected();
  });

  test('floods with frames that are almost nothing', async () => {
    const { server, hostile, unaffected } = await together(() => new Promise(() => {}), {
      creditBytes: MIN_CREDIT_BYTES,
    });
    hostile.send(rawHello());
    for (let seq = 0; seq < 20_000; seq++) hostile.send({ kind: 'event', seq, value: 0 });
    expect(await server.problem()).toBeInstanceOf(FloodError);
    await unaffected();
  });

  test('goes silent', async () => {
    const { server, hostile, unaffected } = await together(readAll, { silenceTimeoutMs: 300, resumeTimeoutMs: 100 });
    hostile.send(rawHello());
    await hostile.expect('hello');
    const problem = await server.problem();
    expect(problem).toBeInstanceOf(PeerTimeoutError);
    expect(problem.message).toMatch(/sent nothing for 0.3 s/);
    await unaffected();
  });

  test('hangs up and does not come back', async () => {
    const { server, hostile, unaffected } = await together(readAll, { resumeTimeoutMs: 100 });
    hostile.send(rawHello());
    await hostile.expect('hello');
    hostile.ws.terminate();
    expect(await server.problem()).toBeInstanceOf(PeerLostError);
    await unaffected();
  });

  test('claims to have received what was not sent when it comes back', async () => {
    const { server, hostile, unaffected } = await together(readAll);
    hostile.send(rawHello());
    await hostile.expect('hello');
    hostile.ws.terminate();
    const again = await startRawPeer(server.url);
    again.send(rawHello({ resume: true, received: 4 }));
    const problem = await server.problem();
    expect(problem).toBeInstanceOf(ProtocolError);
    expect(problem.message).toMatch(/4 frames are said to be received, of 0 sent/);
    await unaffected();
  });
});

test('whoever is not a WebSocket is turned away', async () => {
  const { server, unaffected } = await together(readAll);
  const { port } = new URL(server.url);
  const response = await fetch(`http://127.0.0.1:${port}/`);
  expect(response.status).toBe(426);
  const socket = connectTcp(Number(port), '127.0.0.1');
  socket.on('error', () => {});
  const closed = once(socket, 'close');
  socket.resume().write(Buffer.from(seededBytes(1000, 3)));
  await closed;
  await unaffected();
});

test('a frame that comes in many fragments is one frame', async () => {
  const { hostile } = await together(echo);
  hostile.send(rawHello());
  const frame = rawFrame({ kind: 'event', seq: 0, value: 'in pieces' });
  for (let at = 0; at < frame.byteLength; at += 7)
    hostile.ws.send(frame.subarray(at, at + 7), { fin: at + 7 >= frame.byteLength });
  expect(await hostile.expect('event')).toMatchObject({ value: 'in pieces' });
});
