import { fork } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { after, isEchoed, startClient, startServer } from '../../fixtures/peers.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { MIN_CREDIT_BYTES } from './limits.js';
import { receiveTensors } from './receive-tensors.js';

const SENDER = fileURLToPath(new URL('../../fixtures/endless-sender.js', import.meta.url));
const SECONDS = 6;
/** The receiver's credit, bytes. */
const RATE = 1_000_000;

interface Sample {
  readonly rss: number;
  readonly held: number;
}

test(
  'a receiver of 1 MB/s holds the sender: its memory stays flat and what is on the way within the credit',
  THOROUGH,
  async () => {
    let received = 0;
    const started = performance.now();
    const server = await startServer(
      async (channel) => {
        for await (const { data } of receiveTensors(channel)) {
          received += data.byteLength;
          await sleep((received / RATE) * 1000 - (performance.now() - started));
        }
      },
      { creditBytes: 2 * MIN_CREDIT_BYTES },
    );
    const sender = fork(SENDER, [server.url]);
    after(() => sender.kill('SIGKILL'));
    const samples: Sample[] = [];
    sender.on('message', (sample: Sample) => samples.push(sample));
    await sleep(SECONDS * 1000);
    expect(received).toBeGreaterThan(RATE);
    expect(received).toBeLessThan(1.5 * RATE * SECONDS + MIN_CREDIT_BYTES);
    expect(samples.length).toBeGreaterThan(10);
    for (const { held } of samples) expect(held).toBeLessThanOrEqual(2 * MIN_CREDIT_BYTES);
    expect(Math.max(...samples.map(({ held }) => held))).toBeGreaterThan(MIN_CREDIT_BYTES); // it does use its credit
    // Without flow control, the sender would hold gigabytes by now. The 32 MiB are garbage that V8 has not collected yet.
    const settled = samples.slice(3).map(({ rss }) => rss);
    expect(Math.max(...settled) - (settled[0] as number)).toBeLessThan(32 * 2 ** 20);
  },
);

test('the sender holds no more than it was allowed, whatever credit the peer gives', async () => {
  const server = await startServer(
    async (channel) => {
      await channel.receive();
      await sleep(300);
    },
    { creditBytes: 2 ** 40 },
  );
  const channel = await startClient(server.url, { creditBytes: MIN_CREDIT_BYTES });
  const piece = new Uint8Array(2 ** 20);
  let sent = 0;
  const flood = async (): Promise<void> => {
    for (;;) {
      await channel.send({ kind: 'data', tensor: 0 }, piece);
      sent++;
      expect(channel.heldBytes).toBeLessThanOrEqual(MIN_CREDIT_BYTES);
    }
  };
  await Promise.race([flood(), sleep(200)]);
  expect(sent).toBe(4); // of 1 MiB, where 4 MiB and a header may be
});

test('a peer that computes for long keeps the conversation by its heartbeats', async () => {
  const server = await startServer(
    async (channel) => {
      const message = await channel.receive();
      await sleep(1_000);
      if (message?.header.kind === 'event') await channel.send({ kind: 'event', value: message.header.value });
      await channel.receive();
    },
    { silenceTimeoutMs: 200 },
  );
  const detached: Error[] = [];
  const channel = await startClient(server.url, {
    silenceTimeoutMs: 200,
    onDetached: (reason) => detached.push(reason),
  });
  expect(await isEchoed(channel, 'slow')).toBe(true);
  expect(detached).toEqual([]);
});

test('many small messages at once pass, and are acknowledged to the last', async () => {
  let seen = 0;
  const server = await startServer(async (channel) => {
    for (let message = await channel.receive(); message; message = await channel.receive()) seen++;
  });
  const channel = await startClient(server.url);
  const sends = Array.from({ length: 20_000 }, (_, i) => channel.send({ kind: 'event', value: i }));
  await Promise.all(sends);
  await channel.flushed();
  expect(seen).toBe(20_000); // the last message counts as processed when the next one is requested
  expect(channel.heldBytes).toBe(0);
});
