/**
 * Measures peak memory of conversions against the size of the checkpoint. Generates checkpoints with many layers of small experts
 * and converts each in a process of its own. Prints a table and writes bench/results/memory.json.
 *
 *   npm run bench:memory -- [GB …]        default: 4 and 8
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { generateCheckpoint } from '../fixtures/generate.js';
import { formatBytes, formatSeconds } from '../src/format.js';
import { machine } from './machine.js';

const BUDGET = '600MB';
const SHAPE = { experts: 64, rows: 128, cols: 512 };
const BYTES_PER_LAYER =
  2 * (3 * SHAPE.experts * SHAPE.rows * SHAPE.cols + 4 * SHAPE.cols ** 2 + (SHAPE.experts + 2) * SHAPE.cols);
/** The memory does not depend on the steps; the duration does. */
const STEPS = '3';

const sizes = process.argv.slice(2).map(Number);
const root = fileURLToPath(new URL('../..', import.meta.url));
const cli = join(root, 'dist/src/cli/main.js');

const rows = [];
for (const gigabytes of sizes.length ? sizes : [4, 8]) {
  const folder = mkdtempSync(join(process.env.MOBE_BENCH_DIR ?? tmpdir(), 'mobe-memory-'));
  try {
    const layers = Math.ceil((gigabytes * 1e9) / BYTES_PER_LAYER);
    await generateCheckpoint(join(folder, 'model'), { ...SHAPE, layers, shardBytes: 1e9 });
    const flags = ['--max-memory', BUDGET, '--steps', STEPS, '--bases', '4', '--shard-size', '1GB', '--json'];
    const output = execFileSync(
      process.execPath,
      [cli, 'compress', join(folder, 'model'), join(folder, 'out'), ...flags],
      {
        maxBuffer: 2 ** 28,
        stdio: ['ignore', 'pipe', 'ignore'],
      },
    );
    const { bytesBefore, bytesAfter, peakRssBytes, seconds, groups } = JSON.parse(output.toString());
    const row = { layers, groups: groups.length, bytesBefore, bytesAfter, peakRssBytes, seconds };
    rows.push(row);
    console.log(
      `${formatBytes(bytesBefore)} in ${layers} layers → ${formatBytes(bytesAfter)}: peak memory ${formatBytes(peakRssBytes)} of ${BUDGET} allowed, ${formatSeconds(seconds)}`,
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
mkdirSync(join(root, 'bench/results'), { recursive: true });
writeFileSync(
  join(root, 'bench/results/memory.json'),
  `${JSON.stringify({ machine, budget: BUDGET, steps: Number(STEPS), shape: SHAPE, rows }, null, 2)}\n`,
);
