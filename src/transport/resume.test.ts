import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { echo, isEchoed, seededBytes, startClient, startProxy, startServer } from '../../fixtures/peers.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { PeerLostError, PeerTimeoutError, SessionLostError, UnreachablePeerError } from '../errors.js';
import { MIN_CREDIT_BYTES } from './limits.js';
import { receiveTensors } from './receive-tensors.js';
import { sendTensors } from './send-tensors.js';
import type { TensorPiece } from './tensor-piece.js';

const TENSORS = 100;
const BYTES = seededBytes(700_000, 5);

/** Tensors of different sizes, an empty one among them, in pieces. */
function* tensors(): Generator<TensorPiece> {
  for (let i = 0; i < TENSORS; i++) {
    const bytes = (i * 12_007) % BYTES.byteLength;
    const tensor = { name: `layer.${i}`, dtype: 'U8', shape: [bytes], bytes };
    for (let offset = 0; offset === 0 || offset < bytes; offset += 50_000)
      yield { ...tensor, offset, data: BYTES.subarray(offset, Math.min(bytes, offset + 50_000)) };
  }
}

function digest(pieces: Iterable<TensorPiece>): string {
  const hash = createHash('sha256');
  for (const { name, data, bytes } of pieces) hash.update(`${name} ${bytes} `).update(data);
  return hash.digest('hex');
}

async function digestOf(pieces: AsyncIterable<TensorPiece>): Promise<string> {
  const all: TensorPiece[] = [];
  for await (const piece of pieces) all.push(piece);
  return digest(all);
}

for (const [cuts, cost] of [
  [12, {}],
  [100, THOROUGH],
] as const)
  test(`a stream both ways over a line cut at ${cuts} random bytes arrives whole, once and in order`, {
    ...cost,
    timeout: 120_000,
  }, async () => {
    let arrived = '';
    const server = await startServer(async (channel) => {
      const sending = sendTensors(channel, tensors()).then(() => channel.send({ kind: 'end', value: 'sent' }));
      arrived = await digestOf(receiveTensors(channel));
      await sending;
      await channel.receive(); // until the peer closes
    });
    const random = seededBytes(400, 11);
    let drawn = 0;
    // From inside the handshake on; later cuts are farther apart, or a connection would not live to its hello.
    const proxy = await startProxy(server.url, () =>
      drawn < cuts ? 1 + (new DataView(random.buffer).getUint32(4 * drawn++) % 400_000) : undefined,
    );
    const channel = await startClient(proxy.url, { connectTimeoutMs: 60_000 });
    const sending = sendTensors(channel, tensors()).then(() => channel.send({ kind: 'end', value: 'sent' }));
    const received = await digestOf(receiveTensors(channel));
    await sending;
    await channel.flushed();
    await channel.close();
    expect(proxy.cuts).toBe(cuts);
    expect(received).toBe(digest(tensors()));
    expect(arrived).toBe(digest(tensors()));
    expect(server.problems).toEqual([]);
  });

test('a conversation goes on after the line was down', async () => {
  const server = await startServer(echo);
  const proxy = await startProxy(server.url);
  const reasons: Error[] = [];
  const channel = await startClient(proxy.url, { onDetached: (reason) => reasons.push(reason) });
  for (let i = 0; i < 5; i++) {
    proxy.cut();
    expect(await isEchoed(channel, i)).toBe(true);
  }
  expect(reasons.length).toBeGreaterThan(0);
  for (const reason of reasons) expect(reason).toBeInstanceOf(PeerLostError);
});

test('a line that swallows everything is noticed, and made anew', async () => {
  const server = await startServer(echo);
  const dead = await startProxy(server.url);
  const reasons: Error[] = [];
  const channel = await startClient(dead.url, { silenceTimeoutMs: 300, onDetached: (reason) => reasons.push(reason) });
  expect(await isEchoed(channel, 'one')).toBe(true);
  dead.freeze();
  const answer = isEchoed(channel, 'two');
  await expect.poll(() => reasons[0]).toBeInstanceOf(PeerTimeoutError);
  expect(await answer).toBe(true);
});

test('a peer that was restarted is a lost session', async () => {
  const first = await startServer(echo);
  const second = await startServer(echo);
  const proxy = await startProxy(first.url);
  const channel = await startClient(proxy.url);
  expect(await isEchoed(channel, 1)).toBe(true);
  proxy.refuse(); // the peer vanishes without a closing frame, as when its machine loses power
  proxy.accept(second.url);
  await expect(isEchoed(channel, 2)).rejects.toBeInstanceOf(SessionLostError);
});

test('a peer that was stopped is one, too', async () => {
  const server = await startServer(echo);
  const channel = await startClient(server.url);
  expect(await isEchoed(channel, 1)).toBe(true);
  await server.close();
  await expect(channel.receive()).rejects.toBeInstanceOf(SessionLostError);
});

test('a peer that stays away is given up after a while, and senders and readers learn why', async () => {
  const server = await startServer(echo);
  const proxy = await startProxy(server.url);
  const channel = await startClient(proxy.url, { resumeTimeoutMs: 300, creditBytes: MIN_CREDIT_BYTES });
  expect(await isEchoed(channel, 1)).toBe(true);
  const reading = channel.receive();
  reading.catch(() => {});
  proxy.refuse();
  await expect(reading).rejects.toBeInstanceOf(UnreachablePeerError);
  await expect(channel.send({ kind: 'event', value: 2 })).rejects.toThrow(/cannot be reached \(tried for/);
  await expect(channel.flushed()).rejects.toBeInstanceOf(UnreachablePeerError);
});

test('nobody there is told at once when no time was given, and is waited for otherwise', async () => {
  const server = await startServer(echo);
  const proxy = await startProxy(server.url);
  proxy.refuse();
  await expect(startClient(proxy.url)).rejects.toBeInstanceOf(UnreachablePeerError);
  const early = startClient(proxy.url, { connectTimeoutMs: 20_000 });
  await new Promise((resolve) => setTimeout(resolve, 200));
  proxy.accept(server.url);
  expect(await isEchoed(await early, 'hello')).toBe(true);
});

test('closing waits for what was sent to be dealt with', async () => {
  const seen: unknown[] = [];
  const server = await startServer(async (channel) => {
    for (let message = await channel.receive(); message; message = await channel.receive()) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      if (message.header.kind === 'event') seen.push(message.header.value);
    }
  });
  const channel = await startClient(server.url);
  for (let i = 0; i < 10; i++) await channel.send({ kind: 'event', value: i });
  await channel.close();
  expect(seen).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  expect(server.problems).toEqual([]);
  await expect(channel.send({ kind: 'event', value: 'late' })).rejects.toBeInstanceOf(PeerLostError);
});
