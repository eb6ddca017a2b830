/**
 * Measures how fast ranges of a file are read over HTTP on this machine, compared with `curl`, which reads the file in one piece
 * and throws it away. The server is a process of its own. The two run in turn, and figures are medians.
 *
 *     npm run bench:download -- --gigabytes 1 --runs 5
 */
import { execFile, fork } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { loadavg } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { inLanes } from '../src/in-lanes.js';
import { READ_BYTES } from '../src/sources/files.js';
import { openWeb } from '../src/sources/web/web.js';
import { webFiles } from '../src/sources/web/web-files.js';

const { values } = parseArgs({
  options: {
    gigabytes: { type: 'string', default: '1' },
    runs: { type: 'string', default: '5' },
    serve: { type: 'boolean', default: false },
  },
});
const bytes = Number(values.gigabytes) * 2 ** 30;

/** Sends zeros, or a range of them. */
async function serve(): Promise<void> {
  const block = Buffer.alloc(1024 * 1024);
  const server = createServer(async ({ headers }, response) => {
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? '') ?? [];
    const [first, last] = from === undefined ? [0, bytes - 1] : [Number(from), Number(to)];
    const length = last - first + 1;
    response.writeHead(from === undefined ? 200 : 206, {
      'content-length': length,
      ...(from !== undefined && { 'content-range': `bytes ${first}-${last}/${bytes}` }),
    });
    for (let done = 0; done < length; done += block.byteLength) {
      const more = response.write(block.subarray(0, Math.min(block.byteLength, length - done)));
      if (!more) await once(response, 'drain');
    }
    response.end();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  process.send?.(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
}

/** Reads the file as a run does: in blocks, several at a time. Returns bytes a second. */
async function ours(url: string, readers: number): Promise<number> {
  const web = openWeb(url, '', {});
  const files = webFiles(url, web, {
    list: async () => ({ files: [{ path: 'file', bytes, version: 0 }] }),
    link: async () => ({ url: `${url}/file`, headers: {} }),
    refusal: async ({ status }) => {
      throw new Error(`status ${status}`);
    },
  });
  const buffers = Array.from({ length: readers }, () => new Uint8Array(READ_BYTES));
  const starts = Array.from({ length: Math.ceil(bytes / READ_BYTES) }, (_, i) => i * READ_BYTES);
  const began = performance.now();
  await inLanes(readers, starts, async (start) => {
    const buffer = buffers.pop() as Uint8Array<ArrayBuffer>;
    await files.read(`${url}/file`, start, buffer.subarray(0, Math.min(READ_BYTES, bytes - start)));
    buffers.push(buffer);
  });
  const rate = bytes / ((performance.now() - began) / 1000);
  await files.close();
  return rate;
}

async function curl(url: string): Promise<number> {
  const { stdout } = await promisify(execFile)('curl', [
    '-sS',
    '-o',
    '/dev/null',
    '-w',
    '%{speed_download}',
    `${url}/file`,
  ]);
  return Number(stdout);
}

async function compare(): Promise<void> {
  const child = fork(fileURLToPath(import.meta.url), ['--serve', '--gigabytes', String(values.gigabytes)]);
  const [url] = (await once(child, 'message')) as [string];
  const ways: ReadonlyArray<readonly [string, () => Promise<number>]> = [
    ['curl, one request', () => curl(url)],
    ['mobe, 1 range at a time', () => ours(url, 1)],
    ['mobe, 2 ranges', () => ours(url, 2)],
    ['mobe, 4 ranges', () => ours(url, 4)],
  ];
  const rates = new Map<string, number[]>(ways.map(([name]) => [name, []]));
  for (let run = 0; run < Number(values.runs); run++)
    for (const [name, way] of ways) rates.get(name)?.push(await way());
  child.kill();
  const median = (of: readonly number[]): number => [...of].sort((a, b) => a - b)[of.length >> 1] as number;
  const reference = median(rates.get('curl, one request') ?? []);
  process.stdout.write(`${values.gigabytes} GiB, ${values.runs} runs, load ${loadavg()[0]?.toFixed(1)}\n`);
  for (const [name, of] of rates)
    process.stdout.write(
      `${name.padEnd(26)} ${(median(of) / 1e6).toFixed(0).padStart(6)} MB/s  ${((100 * median(of)) / reference).toFixed(0).padStart(4)} %  (${of.map((it) => (it / 1e6).toFixed(0)).join(', ')})\n`,
    );
}

await (values.serve ? serve() : compare());
