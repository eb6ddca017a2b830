import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import WebSocket, { WebSocketServer } from 'ws';
import { after, seededBytes } from '../../fixtures/peers.js';
import { InvalidFrameError } from '../errors.js';
import { MAX_FRAGMENTS, MAX_FRAME_BYTES } from './limits.js';
import { createMessageReader } from './message-reader.js';

interface Read {
  readonly messages: Buffer[];
  readonly control: Buffer[];
}

function readAll(chunks: readonly Buffer[], masked: boolean): Read {
  const result: Read = { messages: [], control: [] };
  const read = createMessageReader({
    masked,
    onMessage: (fragments) => result.messages.push(Buffer.concat(fragments)),
    onControl: (frame) => result.control.push(frame),
  });
  for (const chunk of chunks) read(chunk);
  return result;
}

/** The bytes that `ws` itself puts on the wire, after the handshake. */
async function wireBytes(send: (ws: WebSocket) => void, from: 'client' | 'server'): Promise<Buffer> {
  const sockets = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  await once(sockets, 'listening');
  const chunks: Buffer[] = [];
  let finished = (): void => {};
  const done = new Promise<void>((resolve) => {
    finished = resolve;
  });
  const proxy = createServer((near) => {
    const far = new (near.constructor as typeof Socket)().connect((sockets.address() as AddressInfo).port, '127.0.0.1');
    near.pipe(far).pipe(near);
    (from === 'client' ? near : far).on('data', (chunk: Buffer) => chunks.push(chunk));
    near.on('error', () => {});
    far.on('error', () => {});
    (from === 'client' ? near : far).on('close', finished);
  });
  proxy.listen(0, '127.0.0.1');
  await once(proxy, 'listening');
  after(() => {
    proxy.close();
    sockets.close();
  });
  const ws = new WebSocket(`ws://127.0.0.1:${(proxy.address() as AddressInfo).port}`, { perMessageDeflate: false });
  const [serverSide] = (await Promise.all([once(sockets, 'connection'), once(ws, 'open')]))[0] as [WebSocket];
  const sender = from === 'client' ? ws : serverSide;
  send(sender);
  sender.close();
  await done;
  const all = Buffer.concat(chunks);
  return all.subarray(all.indexOf('\r\n\r\n') + 4);
}

describe.each(['client', 'server'] as const)('what ws sends as a %s', (from) => {
  test('is read as it was sent, wherever the bytes are cut', async () => {
    const sizes = [0, 1, 125, 126, 65_535, 65_536, 200_003];
    const sent = sizes.map((size) => Buffer.from(seededBytes(size, size + 1)));
    const bytes = await wireBytes((ws) => {
      for (const message of sent) ws.send(message);
      ws.ping('still there?');
      ws.send(sent[4] as Buffer, { fin: false });
      ws.ping('in between');
      ws.send(sent[3] as Buffer, { fin: true });
    }, from);
    const expected = [...sent, Buffer.concat([sent[4] as Buffer, sent[3] as Buffer])];
    fc.assert(
      fc.property(fc.array(fc.nat(bytes.byteLength), { maxLength: 30 }), (cuts) => {
        const ends = [...cuts.sort((a, b) => a - b), bytes.byteLength];
        const { messages, control } = readAll(
          ends.map((end, i) => bytes.subarray(ends[i - 1] ?? 0, end)),
          from === 'client',
        );
        expect(messages.length).toBe(expected.length);
        for (const [i, message] of messages.entries()) expect(message.equals(expected[i] as Buffer)).toBe(true);
        expect(control.length).toBe(3); // two pings and the close
      }),
      { numRuns: 20 },
    );
    const single = readAll(
      Array.from(bytes.subarray(0, 70_000), (byte) => Buffer.from([byte])),
      from === 'client',
    );
    expect(single.messages.slice(0, 5)).toEqual(expected.slice(0, 5));
  });
});

test.each<[string, number[], RegExp]>([
  ['a reserved bit', [0xc2, 0x00], /reserved bit/],
  ['a mask from a server', [0x82, 0x80, 1, 2, 3, 4], /it is masked/],
  ['text', [0x81, 0x00], /opcode 1/],
  ['a continuation of nothing', [0x80, 0x00], /opcode 0/],
  ['a new message within another', [0x02, 0x01, 7, 0x82, 0x01, 7], /opcode 2/],
  ['a long ping', [0x89, 126, 0, 126], /control frame is too long/],
  ['a ping in parts', [0x09, 0x00], /control frame is too long/],
  ['a message of 2^62 bytes', [0x82, 127, 0x40, 0, 0, 0, 0, 0, 0, 0], /at most/],
])('%s is refused', (_, bytes, message) => {
  expect(() => readAll([Buffer.from(bytes)], false)).toThrow(InvalidFrameError);
  expect(() => readAll([Buffer.from(bytes)], false)).toThrow(message);
});

test('a message is refused as soon as its fragments are too many or too long together', () => {
  const fragment = Buffer.from([0x00, 0x00]);
  const many = Buffer.concat([Buffer.from([0x02, 0x00]), ...Array<Buffer>(MAX_FRAGMENTS).fill(fragment)]);
  expect(() => readAll([many], false)).toThrow(/more than 128 fragments/);
  const long = Buffer.alloc(10, 127);
  long[0] = 0x02;
  long.writeBigUInt64BE(BigInt(MAX_FRAME_BYTES), 2);
  const rest = Buffer.alloc(MAX_FRAME_BYTES);
  expect(() => readAll([long, rest, Buffer.from([0x80, 0x01])], false)).toThrow(/at most/);
});

test('an unmasked message from a client is refused', () => {
  expect(() => readAll([Buffer.from([0x82, 0x00])], true)).toThrow(/not masked/);
});
