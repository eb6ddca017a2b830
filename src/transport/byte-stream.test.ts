import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { PassThrough, Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { after, rawFrame, rawHello, seededBytes } from '../../fixtures/peers.js';
import {
  ChecksumError,
  MobeError,
  ProtocolError,
  ProtocolVersionError,
  StreamWriteError,
  TruncatedStreamError,
  WrongServiceError,
} from '../errors.js';
import { readByteStream, writeByteStream } from './byte-stream.js';
import { receiveTensors } from './receive-tensors.js';
import { sendTensors } from './send-tensors.js';
import type { TensorPiece } from './tensor-piece.js';

const FILTER = fileURLToPath(new URL('../../fixtures/tensor-filter.js', import.meta.url));
const SERVICE = 'stream';

function* tensors(count: number, size: number): Generator<TensorPiece> {
  for (let i = 0; i < count; i++) {
    const data = seededBytes(size + i, i);
    yield { name: `t${i}`, dtype: 'U8', shape: [data.byteLength], bytes: data.byteLength, offset: 0, data };
  }
}

async function written(pieces: Iterable<TensorPiece>): Promise<Buffer> {
  const stream = new PassThrough();
  const collected = stream.toArray();
  const sink = writeByteStream(stream, SERVICE);
  await sendTensors(sink, pieces);
  await sink.send({ kind: 'end', value: 'done' });
  await sink.close();
  return Buffer.concat(await collected);
}

/** The tensors' bytes by name. */
async function readAll(bytes: Readable): Promise<Map<string, Buffer>> {
  const source = readByteStream(bytes, SERVICE, 'stdin');
  const found = new Map<string, Buffer>();
  for await (const { name, data } of receiveTensors(source))
    found.set(name, Buffer.concat([found.get(name) ?? Buffer.alloc(0), data]));
  expect(await source.receive()).toBeUndefined();
  return found;
}

const expected = (pieces: Iterable<TensorPiece>): Map<string, Buffer> =>
  new Map([...pieces].map(({ name, data }) => [name, Buffer.from(data)]));

test('what is written is read, wherever the pipe cuts it', async () => {
  const bytes = await written(tensors(5, 3_000));
  await fc.assert(
    fc.asyncProperty(fc.array(fc.nat(bytes.byteLength), { maxLength: 20 }), async (cuts) => {
      const ends = [...cuts.sort((a, b) => a - b), bytes.byteLength];
      const chunks = ends
        .map((end, i) => bytes.subarray(ends[i - 1] ?? 0, end))
        .filter((chunk) => chunk.byteLength > 0);
      expect(await readAll(Readable.from(chunks, { objectMode: false }))).toEqual(expected(tensors(5, 3_000)));
    }),
    { numRuns: 30 },
  );
});

test('two processes pass tensors from one to the other and back, over stdin and stdout', async () => {
  const child = spawn(process.execPath, [FILTER], { stdio: ['pipe', 'pipe', 'inherit'] });
  after(() => child.kill('SIGKILL'));
  const exited = once(child, 'exit');
  const sink = writeByteStream(child.stdin, SERVICE);
  const sending = (async () => {
    await sendTensors(sink, tensors(4, 5_000_000));
    await sink.send({ kind: 'end', value: null });
    await sink.close();
  })();
  const found = await readAll(child.stdout);
  for (const { name, data } of tensors(4, 5_000_000)) expect(found.get(name)?.equals(data)).toBe(true);
  await sending;
  expect(await exited).toEqual([0, null]);
});

test('a writer learns that its reader ended', async () => {
  const child = spawn(process.execPath, ['-e', ''], { stdio: ['pipe', 'ignore', 'inherit'] });
  after(() => child.kill('SIGKILL'));
  const sink = writeByteStream(child.stdin, SERVICE);
  await expect(sendTensors(sink, tensors(50, 1_000_000))).rejects.toBeInstanceOf(StreamWriteError);
});

test('a slow reader holds the writer', async () => {
  const stream = new PassThrough({ highWaterMark: 1 << 20 });
  const sink = writeByteStream(stream, SERVICE);
  let sent = 0;
  const pieces = function* (): Generator<TensorPiece> {
    for (const piece of tensors(1000, 1 << 20)) {
      sent++;
      yield piece;
    }
  };
  sendTensors(sink, pieces()).catch(() => {});
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(sent).toBeLessThan(5);
  expect(stream.writableLength + stream.readableLength).toBeLessThan(4 << 20);
  stream.destroy();
});

describe('refused is a stream that', () => {
  const framed = (...frames: Buffer[]): Buffer[] =>
    frames.flatMap((frame) => {
      const length = Buffer.alloc(4);
      length.writeUInt32LE(frame.byteLength);
      return [length, frame];
    });
  const hello = rawFrame(rawHello({ service: SERVICE }));
  const tensor = { kind: 'tensor', seq: 0, tensor: 0, name: 'w', dtype: 'U8', shape: [4], bytes: 4 };
  test.each<[string, Buffer[], new (...args: never[]) => MobeError]>([
    ['is empty', [], TruncatedStreamError],
    ['is something else', [Buffer.from('PK\u0003\u0004 a zip file, or so')], ProtocolError],
    ['says that a frame has 4 GB', [Buffer.from([0xff, 0xff, 0xff, 0xff, 0, 0])], ProtocolError],
    ['has a header longer than its frame', [Buffer.from([8, 0, 0, 0, 9, 0, 0, 0, 1, 2, 3, 4])], ProtocolError],
    ['has another version', framed(rawFrame({ kind: 'hello', protocol: 9 })), ProtocolVersionError],
    ['is for another service', framed(rawFrame(rawHello({ service: 'x' }))), WrongServiceError],
    ['does not say hello', framed(rawFrame(tensor)), ProtocolError],
    ['repeats a frame', framed(hello, rawFrame(tensor), rawFrame(tensor)), ProtocolError],
    ['leaves a frame out', framed(hello, rawFrame({ ...tensor, seq: 1 })), ProtocolError],
    ['acknowledges', framed(hello, rawFrame({ kind: 'ack', consumed: 0 })), ProtocolError],
    ['closes too early', framed(hello, rawFrame(tensor), rawFrame({ kind: 'close', sent: 1 })), TruncatedStreamError],
    ['lost a frame before it closed', framed(hello, rawFrame({ kind: 'close', sent: 1 })), TruncatedStreamError],
    [
      'damages a tensor',
      framed(
        hello,
        rawFrame(tensor),
        rawFrame({ kind: 'data', seq: 1, tensor: 0, checksum: Buffer.alloc(16) }, Buffer.alloc(4)),
      ),
      ChecksumError,
    ],
  ])('%s', async (_, chunks, errorClass) => {
    await expect(readAll(Readable.from(chunks, { objectMode: false }))).rejects.toBeInstanceOf(errorClass);
  });

  test('ends anywhere but at its end', async () => {
    const bytes = await written(tensors(2, 300));
    for (let end = 0; end < bytes.byteLength; end += 7) {
      const reading = readAll(Readable.from([bytes.subarray(0, end)], { objectMode: false }));
      await expect(reading).rejects.toBeInstanceOf(TruncatedStreamError);
    }
  });

  test('is damaged anywhere: it is read as it was, or refused', async () => {
    const bytes = await written(tensors(3, 200));
    const whole = expected(tensors(3, 200));
    let refused = 0;
    for (let i = 0; i < 1_000; i++) {
      const damaged = Buffer.from(bytes);
      const at = (i * 7919) % bytes.byteLength;
      damaged[at] = (damaged[at] as number) ^ (1 << (i % 8));
      try {
        const found = await readAll(Readable.from([damaged], { objectMode: false }));
        // Checksums do not cover names.
        expect([...found.values()]).toEqual([...whole.values()]);
      } catch (error) {
        if (!(error instanceof MobeError)) throw error;
        refused++;
      }
    }
    expect(refused).toBeGreaterThan(800);
  });
});
