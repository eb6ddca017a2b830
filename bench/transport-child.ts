/** One end of a transfer of bench/transport.ts. It sends its parent its URL if it listens, then the seconds that it took. */
import { randomFillSync } from 'node:crypto';
import { connect as connectTcp, createServer, type Server, type Socket } from 'node:net';
import WebSocket, { WebSocketServer } from 'ws';
import type { Channel } from '../src/transport/channel.js';
import { connect } from '../src/transport/connect.js';
import { MAX_PAYLOAD_BYTES } from '../src/transport/limits.js';
import { type Listener, listen } from '../src/transport/listen.js';
import { receiveTensors } from '../src/transport/receive-tensors.js';
import { sendTensors } from '../src/transport/send-tensors.js';
import type { TensorPiece } from '../src/transport/tensor-piece.js';
import type { Direction, Role, Way } from './transport-ways.js';

const [way, direction, role, total, url] = process.argv.slice(2) as [Way, Direction, Role, string, string];
const bytes = Number(total);
const isSender = (direction === 'client to server') === (role === 'connect');
const HOST = '127.0.0.1';
const TENSOR_BYTES = [8, 16, 32, 64].map((mebibytes) => mebibytes * 2 ** 20);
const source = isSender ? randomFillSync(Buffer.allocUnsafe(Math.max(...TENSOR_BYTES))) : Buffer.alloc(0);

const tell = (what: string | number): void => void process.send?.(what);
async function timed(work: () => Promise<void>): Promise<void> {
  const started = performance.now();
  await work();
  tell((performance.now() - started) / 1000);
}

/** Frames as large as those that tensors are cut into. */
function* frames(): Generator<Uint8Array> {
  for (let sent = 0; sent < bytes; sent += MAX_PAYLOAD_BYTES) {
    const at = sent % source.byteLength;
    yield source.subarray(at, at + Math.min(MAX_PAYLOAD_BYTES, bytes - sent));
  }
}

function* tensors(): Generator<TensorPiece> {
  for (let sent = 0, i = 0; sent < bytes; i++) {
    const size = Math.min(TENSOR_BYTES[i % TENSOR_BYTES.length] as number, bytes - sent);
    yield { name: `tensor ${i}`, dtype: 'U8', shape: [size], bytes: size, offset: 0, data: source.subarray(0, size) };
    sent += size;
  }
}

const converse = (channel: Channel): Promise<void> =>
  timed(async () => {
    if (isSender) {
      await sendTensors(channel, tensors());
      await channel.send({ kind: 'end', value: null });
      await channel.receive();
    } else {
      let received = 0;
      const pieces = receiveTensors(channel);
      // Here, as in the other ways, nothing holds a piece during the wait for the next one. `for await` would hold it.
      const takeOne = async (): Promise<boolean> => {
        const { value, done } = await pieces.next();
        if (!done) received += value.data.byteLength;
        return !done;
      };
      while (await takeOne());
      if (received !== bytes) throw new Error(`received ${received} of ${bytes} bytes`);
      await channel.send({ kind: 'end', value: null });
    }
  });

/** Sends with two frames on the way at a time, as `Channel` does. The receiver's answer ends the transfer. */
const overWs = (ws: WebSocket): Promise<void> =>
  timed(async () => {
    const answered = new Promise((resolve) => {
      let received = 0;
      ws.on('message', (data: Buffer) => {
        received += data.byteLength;
        if (!isSender && received === bytes) ws.send('done', resolve);
        if (isSender) resolve(data);
      });
    });
    if (isSender) {
      let before: Promise<unknown> = Promise.resolve();
      for (const frame of frames()) {
        const written = new Promise((resolve) => ws.send(frame, resolve));
        await before;
        before = written;
      }
    }
    await answered;
  });

const overTcp = (socket: Socket): Promise<void> =>
  timed(async () => {
    const answered = new Promise((resolve) => {
      let received = 0;
      socket.on('data', (data) => {
        received += data.byteLength;
        if (!isSender && received === bytes) socket.write('d', resolve);
        if (isSender) resolve(data);
      });
    });
    if (isSender) {
      let before: Promise<unknown> = Promise.resolve();
      for (const frame of frames()) {
        const written = new Promise((resolve) => socket.write(frame, resolve));
        await before;
        before = written;
      }
    }
    await answered;
  });

const portOf = (server: Server | WebSocketServer): number => (server.address() as { port: number }).port;

async function run(): Promise<void> {
  if (way === 'mobe') {
    if (role === 'connect') {
      const channel = await connect(url, { service: 'bench' });
      await converse(channel);
      await channel.close();
    } else {
      const listener: Listener = await listen({ host: HOST, port: 0, service: 'bench' }, async (channel) => {
        await converse(channel);
        await channel.close();
        void listener.close();
      });
      tell(listener.url);
    }
  } else if (way === 'tcp') {
    if (role === 'connect') {
      const socket = connectTcp(Number(url), HOST);
      socket.once('connect', () => void overTcp(socket).then(() => socket.end()));
    } else {
      const server = createServer((socket) => {
        void overTcp(socket).then(() => server.close());
      });
      server.listen(0, HOST, () => tell(String(portOf(server))));
    }
  } else if (role === 'connect') {
    const mask = way === 'ws' ? { generateMask: (key: Buffer) => void key.fill(0) } : {};
    const ws = new WebSocket(url, { perMessageDeflate: false, ...mask });
    ws.once('open', () => void overWs(ws).then(() => ws.close()));
  } else {
    const server: WebSocketServer = new WebSocketServer({ host: HOST, port: 0, perMessageDeflate: false }, () =>
      tell(`ws://${HOST}:${portOf(server)}/`),
    );
    server.once('connection', (ws) => void overWs(ws).then(() => server.close()));
  }
}

await run();
