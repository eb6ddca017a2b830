/**
 * What a stream of tensors reaches over loopback, beside the sockets it runs on: raw TCP, and a raw `ws` loop with frames
 * of the same size. Sender and receiver are processes of their own; ways take turns; figures are medians.
 *
 *     npm run bench:transport -- --gigabytes 2 --runs 5
 */
import { fork } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { machine } from './machine.js';
import { DIRECTIONS, type Direction, type Role, WAYS, type Way } from './transport-ways.js';

const { values } = parseArgs({
  options: {
    gigabytes: { type: 'string', default: '2' },
    runs: { type: 'string', default: '5' },
    out: { type: 'string', default: 'bench/results/transport.json' },
  },
});
const bytes = Number(values.gigabytes) * 2 ** 30;
const runs = Number(values.runs);
/**
 * In a process as small as these V8 collects all garbage every 30 MB received, whoever receives, and the figures tell of
 * little else. The program's own heap is larger; so is theirs with this.
 */
const NODE_FLAGS = ['--initial-old-space-size=64'];
const CHILD = fileURLToPath(new URL('./transport-child.js', import.meta.url));

/** Bytes a second of one transfer: from the first byte sent to the receiver's word that it has the last. */
async function transfer(way: Way, direction: Direction): Promise<number> {
  const start = (role: Role, url: string): ReturnType<typeof fork> =>
    fork(CHILD, [way, direction, role, String(bytes), url], { execArgv: NODE_FLAGS });
  const message = (child: ReturnType<typeof fork>): Promise<unknown> =>
    new Promise((resolve, reject) => {
      child.once('message', resolve);
      child.once('exit', (code) => reject(new Error(`a ${way} process ended with ${code}`)));
    });
  const listening = start('listen', '');
  const url = (await message(listening)) as string;
  const connecting = start('connect', url);
  // Both tell how long they were at it; the sender's clock counts.
  const [listener, connector] = (await Promise.all([message(listening), message(connecting)])) as [number, number];
  return bytes / (direction === 'client to server' ? connector : listener);
}

const load = loadavg()[0];
const rates = new Map<string, number[]>();
for (let run = 0; run < runs; run++) {
  for (const direction of DIRECTIONS) {
    for (const way of WAYS) {
      const key = `${direction}/${way}`;
      rates.set(key, [...(rates.get(key) ?? []), await transfer(way, direction)]);
    }
  }
}

const median = (numbers: readonly number[]): number =>
  [...numbers].sort((a, b) => a - b)[numbers.length >> 1] as number;
const rows = DIRECTIONS.flatMap((direction) => {
  const rate = (way: Way): number => median(rates.get(`${direction}/${way}`) as number[]);
  return WAYS.map((way) => ({
    direction,
    way,
    bytesPerSecond: Math.round(rate(way)),
    ofWs: rate(way) / rate('ws'),
    ofTcp: rate(way) / rate('tcp'),
    all: (rates.get(`${direction}/${way}`) as number[]).map(Math.round),
  }));
});
for (const { direction, way, bytesPerSecond, ofWs, ofTcp } of rows) {
  const share = (of: number): string => `${(100 * of).toFixed(0)} %`.padStart(6);
  console.log(
    `${direction}  ${way.padEnd(10)} ${(bytesPerSecond / 1e9).toFixed(2)} GB/s  ${share(ofWs)} of ws  ${share(ofTcp)} of tcp`,
  );
}
const out = values.out;
mkdirSync(new URL('.', new URL(out, `file://${process.cwd()}/`)), { recursive: true });
writeFileSync(out, `${JSON.stringify({ machine: { ...machine, load }, bytes, runs, rows }, null, 2)}\n`);
