/** Sends tensors over a WebSocket to another thread, which drops them. It measures the cost of a connection without a network. */
import { randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { parentPort, Worker, workerData } from 'node:worker_threads';
import { connect } from '../../src/transport/connect.js';
import { listen } from '../../src/transport/listen.js';
import { receiveTensors } from '../../src/transport/receive-tensors.js';
import { sendTensors } from '../../src/transport/send-tensors.js';
import type { TensorPiece } from '../../src/transport/tensor-piece.js';
import { type Outcome, startTimer } from './sample.js';
import { BLOCK_BYTES } from './task.js';

const SERVICE = 'bench';
const HOST = '127.0.0.1';
/** Worker data of the receiving thread. Other threads that load this file do not have it. */
const RECEIVER = 'receiver of bench/hop';

/** Measures from the first byte sent until the receiver says that it has the last one. */
export async function hop(bytes: number): Promise<Outcome> {
  const peer = new Worker(new URL(import.meta.url), { workerData: RECEIVER });
  try {
    const [url] = (await once(peer, 'message')) as [string];
    const channel = await connect(url, { service: SERVICE });
    const block = randomFillSync(new Uint8Array(BLOCK_BYTES));
    const pieces = function* (): Generator<TensorPiece> {
      for (let sent = 0; sent < bytes; sent += BLOCK_BYTES) {
        const data = block.subarray(0, Math.min(BLOCK_BYTES, bytes - sent));
        const size = data.byteLength;
        yield { name: `at ${sent}`, dtype: 'U8', shape: [size], bytes: size, offset: 0, data };
      }
    };
    const stop = startTimer();
    await sendTensors(channel, pieces());
    await channel.send({ kind: 'end', value: null });
    await channel.receive();
    const time = stop();
    await channel.close();
    return { bytes, ...time };
  } finally {
    await peer.terminate();
  }
}

/** The receiving thread. */
async function receiveAndDrop(): Promise<void> {
  const listener = await listen({ host: HOST, port: 0, service: SERVICE }, async (channel) => {
    for await (const _ of receiveTensors(channel));
    await channel.send({ kind: 'end', value: null });
  });
  parentPort?.postMessage(listener.url);
}

if (workerData === RECEIVER) await receiveAndDrop();
