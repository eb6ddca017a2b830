/**
 * Measures the rate of a stream of tensors over loopback, compared with raw TCP and with a plain `ws` loop with frames of the same
 * size. Sender and receiver are processes of their own. The ways run in turn, and figures are medians.
 *
 *     npm run bench:transport -- --gigabytes 2 --runs 5
 */
import { fork } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { machine } from './machine.js';
import { DIRECTIONS, type Direction, type Role, type Way, waysOf } from './transport-ways.js';

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
 * In a process as small as these, V8 collects all garbage after every 30 MB received. That would dominate all figures. The heap of
 * the real program is larger, and with this flag theirs is too.
 */
const NODE_FLAGS = ['--initial-old-space-size=64'];
const CHILD = fileURLToPath(new URL('./transport-child.js', import.meta.url));

/** Rate of one transfer, bytes a second, from the first byte sent until the receiver says that it has the last one. */
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
  // Both processes report their time. The sender's counts.
  const [listener, connector] = (await Promise.all([message(listening), message(connecting)])) as [number, number];
  return bytes / (direction === 'client to server' ? connector : listener);
}

const load = loadavg()[0];
const rates = new Map<string, number[]>();
for (let run = 0; run < runs; run++) {
  for (const direction of DIRECTIONS) {
    for (const way of waysOf(direction)) {
      const key = `${direction}/${way}`;
      rates.set(key, [...(rates.get(key) ?? []), await transfer(way, direction)]);
    }
  }
}

const median = (numbers: readonly number[]): number =>
  [...numbers].sort((a, b) => a - b)[numbers.length >> 1] as number;
const rows = DIRECTIONS.flatMap((direction) => {
  const rate = (way: Way): number => median(rates.get(`${direction}/${way}`) as number[]);
  return waysOf(direction).map((way) => ({
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
