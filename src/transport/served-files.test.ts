import { writeFileSync } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { after, seededBytes, startProxy, startServer, type TestServer } from '../../fixtures/peers.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { RemoteChangedError, RemoteError } from '../errors.js';
import { LocalFiles } from '../sources/files.js';
import { MAX_PAYLOAD_BYTES } from './limits.js';
import { connectFiles, FILE_SERVICE, type FileSource, offerFiles, type RemoteFiles } from './served-files.js';

const folder = temporaryFolder();
const LARGE = seededBytes(9_000_001, 21);
writeFileSync(join(folder, 'large'), LARGE);
writeFileSync(join(folder, 'small'), 'hello');

/** The files of a folder, by name. */
function folderSource(root: string): FileSource {
  const reader = new LocalFiles();
  after(() => reader.close());
  return {
    async list() {
      const names = (await readdir(root)).sort();
      return Promise.all(
        names.map(async (file) => {
          const { size, mtimeMs } = await stat(join(root, file));
          return { file, bytes: size, modified: mtimeMs };
        }),
      );
    },
    read: (file, position, target) => reader.read(join(root, file), position, target),
  };
}

const serve = (root = folder): Promise<TestServer> =>
  startServer((channel) => offerFiles(channel, folderSource(root)), { service: FILE_SERVICE });

async function open(url: string): Promise<RemoteFiles> {
  const files = await connectFiles(url, { connectTimeoutMs: 5_000 });
  after(() => files.close());
  return files;
}

async function range(files: RemoteFiles, file: string, start: number, end: number): Promise<Buffer> {
  const target = Buffer.alloc(end - start);
  await files.read(file, start, target);
  return target;
}

const slice = (start: number, end: number): Buffer => Buffer.from(LARGE.subarray(start, end));

test('files are listed and read by ranges as they are', async () => {
  const files = await open((await serve()).url);
  expect((await files.list()).map(({ file, bytes }) => [file, bytes])).toEqual([
    ['large', LARGE.byteLength],
    ['small', 5],
  ]);
  expect((await range(files, 'small', 1, 4)).toString()).toBe('ell');
  expect((await range(files, 'large', 0, LARGE.byteLength)).equals(Buffer.from(LARGE))).toBe(true);
  expect(
    (await range(files, 'large', LARGE.byteLength - 1, LARGE.byteLength)).equals(slice(-1, LARGE.byteLength)),
  ).toBe(true);
  await files.read('large', 0, new Uint8Array(0));
});

test('reads may overlap', async () => {
  const files = await open((await serve()).url);
  const ranges = Array.from({ length: 40 }, (_, i) => [i * 200_000, i * 200_000 + 700_001] as const);
  const results = await Promise.all(ranges.map(([start, end]) => range(files, 'large', start, end)));
  for (const [i, [start, end]] of ranges.entries()) expect(results[i]?.equals(slice(start, end))).toBe(true);
});

describe('a read fails alone', () => {
  test.each([
    ['of a file that is not offered', '../../etc/passwd', 0, 4, /no such file is offered/],
    ['of a file that is not there', 'none', 0, 4, /no such file is offered/],
    ['beyond the end', 'small', 2, 6, /5 bytes, not 6/],
  ])('%s', async (_, file, start, end, message) => {
    const files = await open((await serve()).url);
    const good = range(files, 'small', 0, 5);
    const bad = range(files, file, start, end);
    const after = range(files, 'small', 0, 5);
    await expect(bad).rejects.toBeInstanceOf(RemoteError);
    await expect(bad).rejects.toThrow(message);
    expect((await good).toString()).toBe('hello');
    expect((await after).toString()).toBe('hello');
  });
});

test('a range read over a line that breaks again and again is whole', async () => {
  const server = await serve();
  let cut = 0;
  const proxy = await startProxy(server.url, () => (++cut <= 10 ? 400_000 * cut : undefined));
  const files = await open(proxy.url);
  expect((await range(files, 'large', 3, LARGE.byteLength)).equals(slice(3, LARGE.byteLength))).toBe(true);
  expect(proxy.cuts).toBeGreaterThan(2);
});

/** Reads from a server that stops in the middle and is replaced by another. Returns the bytes and the positions that each was asked for. */
async function restarted(root: string): Promise<{ read: Promise<Buffer>; asked: [number[], number[]] }> {
  const asked: [number[], number[]] = [[], []];
  const source = folderSource(root);
  const second = await startServer(
    (channel) =>
      offerFiles(channel, {
        list: source.list,
        read(file, position, target) {
          asked[1].push(position);
          return source.read(file, position, target);
        },
      }),
    { service: FILE_SERVICE },
  );
  const original = folderSource(folder);
  const first = await startServer(
    (channel) =>
      offerFiles(channel, {
        list: original.list,
        async read(file, position, target) {
          asked[0].push(position);
          if (asked[0].length === 3) {
            await channel.flushed(); // the bytes sent before have arrived
            proxy.refuse();
            proxy.accept(second.url);
          }
          await original.read(file, position, target);
        },
      }),
    { service: FILE_SERVICE },
  );
  const proxy = await startProxy(first.url);
  const files = await open(proxy.url);
  return { read: range(files, 'large', 0, LARGE.byteLength), asked };
}

test('a read goes on where it was when the peer was restarted', async () => {
  const { read, asked } = await restarted(folder);
  expect((await read).equals(Buffer.from(LARGE))).toBe(true);
  expect(asked).toEqual([[0, MAX_PAYLOAD_BYTES, 2 * MAX_PAYLOAD_BYTES], [2 * MAX_PAYLOAD_BYTES]]);
});

test('a peer that offers other files after its restart is refused', async () => {
  const other = temporaryFolder();
  writeFileSync(join(other, 'large'), LARGE);
  writeFileSync(join(other, 'small'), 'other');
  const { read } = await restarted(other);
  await expect(read).rejects.toBeInstanceOf(RemoteChangedError);
});
