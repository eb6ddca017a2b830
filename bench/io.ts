/**
 * Measures how fast this machine streams a model, what limits it, and how close this program comes to the limit: the report of
 * `mobe bench` on a generated checkpoint, then throughput and memory against size and number of tensors. Prints tables and writes
 * io.json and io.html.
 *
 *     npm run bench                            bench/results/io.json and io.html
 *     npm run bench -- --quick --out out/io    a short trial of one or two minutes
 *     npm run bench -- --slow read=20          a test: the report must find the slowed stage
 *
 * Checkpoints are written to MOBE_BENCH_DIR (default: the system's temporary folder). PYTHON names a Python with safetensors and
 * torch.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { generateCheckpoint } from '../fixtures/generate.js';
import { describeReport } from '../src/cli/bench-table.js';
import { formatTable, left, right } from '../src/cli/table.js';
import { reportPage } from '../streams/bench/bench-page.js';
import { benchmark } from '../streams/bench/benchmark.js';
import type { Slowdown } from '../streams/flow/stage-clock.js';
import { checkScale, measureScale, SCALE_COLUMNS, scaleCells } from './scale.js';
import { scaleSection } from './scale-section.js';

const { values: flags } = parseArgs({
  options: {
    gigabytes: { type: 'string', default: '1' },
    rounds: { type: 'string', default: '5' },
    quick: { type: 'boolean', default: false },
    large: { type: 'boolean', default: false },
    slow: { type: 'string' },
    json: { type: 'boolean', default: false },
    out: { type: 'string', default: 'bench/results/io' },
  },
});

/** A Qwen3-30B expert's shape, and a quarter of its experts: 302 MB a layer. */
const SHAPE = { experts: 32, rows: 768, cols: 2048 };
const LAYER_BYTES = 2 * 3 * SHAPE.experts * SHAPE.rows * SHAPE.cols;

const tell = (line: string): void => void process.stderr.write(`${line}\n`);
const folder = mkdtempSync(join(process.env.MOBE_BENCH_DIR ?? tmpdir(), 'mobe-io-'));
try {
  const gigabytes = flags.quick ? 0.3 : Number(flags.gigabytes);
  const model = join(folder, 'model');
  tell(`generating ${gigabytes} GB`);
  const layers = Math.max(1, Math.round((gigabytes * 1e9) / LAYER_BYTES));
  await generateCheckpoint(model, { ...SHAPE, layers, shardBytes: 5e8, seed: 1 });
  const report = await benchmark(model, {
    folder,
    rounds: flags.quick ? 1 : Number(flags.rounds),
    bytes: 2 * gigabytes * 1e9, // the whole checkpoint
    slow: parseSlow(flags.slow),
    onMeasure: (done, total, what) => tell(`${done + 1} of ${total}: ${what}`),
  });
  rmSync(model, { recursive: true });
  const scale = await measureScale(folder, { quick: flags.quick, large: flags.large, tell });
  const targets = [...report.targets, ...checkScale(scale)];
  const notes = [
    ...report.notes,
    ...(flags.large || flags.quick ? [] : ['16 GB were left out (--large measures them).']),
  ];
  const whole = {
    ...report,
    source: { ...report.source, folder: 'generated' },
    folder: dirname(folder),
    targets,
    notes,
  };
  mkdirSync(dirname(flags.out), { recursive: true });
  writeFileSync(`${flags.out}.json`, `${JSON.stringify({ ...whole, scale }, null, 2)}\n`);
  writeFileSync(`${flags.out}.html`, reportPage(whole, [scaleSection(scale)]));
  const columns = SCALE_COLUMNS.map((title, i) => (i < 1 ? left(title) : right(title)));
  console.log(
    flags.json
      ? JSON.stringify({ ...whole, scale }, null, 2)
      : `${describeReport(whole)}\n\n${formatTable(columns, scale.map(scaleCells))}\n\n${flags.out}.json and ${flags.out}.html are written.`,
  );
} finally {
  rmSync(folder, { recursive: true, force: true });
}

/** Parses "read=20". */
function parseSlow(text: string | undefined): Slowdown | undefined {
  const [stage, factor] = text?.split('=') ?? [];
  return stage && factor ? { stage, factor: Number(factor) } : undefined;
}
