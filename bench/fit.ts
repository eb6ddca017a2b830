/**
 * Compares varpro with the reference's method in PyTorch (bench/reference/train.py): the time to reach the reference's losses,
 * and the loss after a share of its time. Prints a table. Writes bench/results/fit.json and fit.svg after each race.
 *
 *   PYTHON=python3 npm run bench:fit -- [flags]        the interpreter needs torch
 *
 *   --groups fixture,synthetic   groups to race: fixture, synthetic, real shape, large, gpu, or all. All but the first two take hours on a
 *                                CPU. bench/gpu.sh runs the last on a GPU
 *   --engine onnx-cpu            for varpro; auto takes the fastest
 *   --device cpu                 for the reference: cpu or cuda
 *   --only <text>                only groups whose name contains the text
 *   --activation silu,tanh
 *   --reference-steps 10000
 *   --threads 1                  for both programs
 *   --seed 1                     for varpro; the reference has no random numbers
 *   --out bench/results/fit      output files without .json and .svg
 *   --quick                      a short trial: two groups, few steps, output in out/
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { env } from 'onnxruntime-node';
import { formatTable, left, right } from '../src/cli/table.js';
import { chooseEngine, ENGINE_CHOICES } from '../src/engine/choose-engine.js';
import { addMoments, deviation, measureMoments, NO_MOMENTS } from '../src/linalg/moments.js';
import { factorParameters, REFERENCE_ACTIVATIONS } from '../src/methods/mobe/problem.js';
import { groupedSvd, perExpertSvd, sharedBasisSvd } from '../src/methods/svd/baselines.js';
import { VERSION } from '../src/version.js';
import { fitChart } from './fit-chart.js';
import { goalOf, mean, type Reached } from './levels.js';
import { machine } from './machine.js';
import { encodeNpy } from './npy.js';
import { type Race, type RaceOptions, race, type Weights } from './race.js';
import { KINDS, type Kind, type Subject, subjects } from './subjects.js';

const LADDER = [25, 50, 100, 200, 300, 350, 400, 450, 500, 600, 800, 1000, 1200, 1600, 2000, 2400];
/** At a real shape a thousand steps of the reference take about an hour. The race ends there, and compares losses of earlier steps. */
const REAL = { ladder: [8, 16, 32, 64, 128, 256], referenceSteps: 1000, share: 1 / 5 };
/** Large groups are only timed: a few steps of the reference, and varpro for the same time. */
const LARGE = { ladder: [16], referenceSteps: 100, share: 1 };
/** Nobody has run a race on a GPU yet. */
const GPU = { ladder: [50, 100, 200, 400, 800], referenceSteps: 2000, share: 1 / 5 };
const QUICK = { ladder: [25, 50, 100], referenceSteps: 300, share: 1 };
const QUICK_GROUPS = ['layer 1 gate_proj', 'shared structure'];

const { values: flags } = parseArgs({
  options: {
    groups: { type: 'string', default: 'fixture,synthetic' },
    only: { type: 'string', default: '' },
    activation: { type: 'string' },
    'reference-steps': { type: 'string', default: '10000' },
    threads: { type: 'string', default: '1' },
    seed: { type: 'string', default: '1' },
    engine: { type: 'string', default: 'onnx-cpu' },
    device: { type: 'string', default: 'cpu' },
    out: { type: 'string' },
    quick: { type: 'boolean', default: false },
  },
});
const { quick } = flags;
const out = flags.out ?? (quick ? 'out/fit' : 'bench/results/fit');
const activations = choice(flags.activation ?? (quick ? 'silu' : 'all'), REFERENCE_ACTIVATIONS);
const kinds = choice(flags.groups, KINDS);
const chosen = subjects().filter(({ name, kind }) =>
  quick ? QUICK_GROUPS.includes(name) : kinds.includes(kind) && name.includes(flags.only),
);
const threads = whole('threads');
const [engineChoice] = choice(flags.engine, ENGINE_CHOICES);
if (!engineChoice) throw new TypeError('--engine names none');
const options = {
  python: pythonWithTorch(),
  threads,
  seed: whole('seed'),
  engine: (await chooseEngine(engineChoice, threads)).name,
  device: flags.device,
};

/** Relative squared errors of singular value decompositions with as many parameters. */
interface Baselines {
  readonly perExpert: number;
  readonly grouped: number;
  readonly shared: number;
}
type Result = Race & { readonly meanSquare: number; readonly baselines?: Baselines };

const results: Result[] = [];
const startedAt = new Date().toISOString();
const load = loadavg()[0];
const folder = mkdtempSync(join(process.env.MOBE_BENCH_DIR ?? tmpdir(), 'mobe-fit-'));
mkdirSync(dirname(out), { recursive: true });
try {
  for (const subject of chosen) {
    const experts = await subject.experts();
    const { weights, baselines } = prepare(subject, experts);
    for (const activation of activations) {
      const label = `${subject.name}, ${activation}: `;
      const log = (line: string): void => console.error(label + line);
      const result = race(subject, activation, weights, { ...options, ...pace(subject.kind), log });
      results.push({ ...result, meanSquare: weights.meanSquare, ...(baselines && { baselines }) });
      write();
    }
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
for (const text of [raceTable(), errorTable(), KINDS.flatMap(summary).join('\n')]) if (text) console.log(`${text}\n`);
console.log(`${out}.json, ${out}.svg`);

function choice<T extends string>(text: string, all: readonly T[]): T[] {
  const wanted = text.split(',');
  const unknown = wanted.find((it) => it !== 'all' && !all.some((known) => known === it));
  if (unknown !== undefined) throw new TypeError(`"${unknown}" is none of ${all.join(', ')}, all`);
  return all.filter((it) => wanted.includes('all') || wanted.includes(it));
}

function whole(flag: 'threads' | 'seed' | 'reference-steps'): number {
  const value = Number(flags[flag]);
  if (!Number.isInteger(value) || value < 1) throw new TypeError(`--${flag} takes a whole number from 1 on`);
  return value;
}

function pythonWithTorch(): string | undefined {
  const python = process.env.PYTHON ?? 'python3';
  try {
    execFileSync(python, ['-c', 'import torch, numpy'], { stdio: 'ignore' });
    return python;
  } catch {
    console.error(`${python} has no torch: ours alone, for the losses of fixtures/reference-curves.json`);
    return undefined;
  }
}

function pace(kind: Kind): Pick<RaceOptions, 'ladder' | 'referenceSteps' | 'share'> {
  if (kind === 'large') return LARGE;
  if (kind === 'real shape') return REAL;
  if (kind === 'gpu') return GPU;
  return quick ? QUICK : { ladder: LADDER, referenceSteps: whole('reference-steps'), share: 1 / 5 };
}

function prepare({ name, kind, problem }: Subject, experts: readonly Float32Array[]) {
  const { experts: n, rows, cols, bases } = problem;
  const file = join(folder, `${name.replace(/\W+/g, '-')}.npy`);
  writeFileSync(file, encodeNpy(experts, [n, rows, cols]));
  const moments = experts.map(measureMoments).reduce(addMoments, NO_MOMENTS);
  const sigma = deviation(moments);
  const weights: Weights = { file, sigma, meanSquare: moments.squares / moments.count / sigma ** 2 };
  if (kind !== 'fixture') return { weights };
  const parameters = factorParameters(problem);
  const baselines: Baselines = {
    perExpert: perExpertSvd(experts, rows, cols, parameters).relativeError ** 2,
    grouped: groupedSvd(experts, rows, cols, parameters, bases).relativeError ** 2,
    shared: sharedBasisSvd(experts, rows, cols, parameters).relativeError ** 2,
  };
  return { weights, baselines };
}

function write(): void {
  const versions = { mobe: VERSION, onnxruntime: env.versions.node, torch: results[0]?.reference?.torch };
  const { threads, seed, engine } = options;
  const record = {
    startedAt,
    machine: { ...machine, load },
    versions,
    threads,
    seed,
    engine,
    summary: KINDS.flatMap(summary),
    races: results,
  };
  // Numbers have six digits, and pairs stand on one line.
  const json = JSON.stringify(record, (_, value) => (typeof value === 'number' ? round(value) : value), 2);
  writeFileSync(`${out}.json`, `${json.replace(/\[\s+([-+\d.e]+),\s+([-+\d.e]+)\s+\]/g, '[$1, $2]')}\n`);
  writeFileSync(`${out}.svg`, fitChart(results, threads));
}

function round(value: number): number {
  return Number.isInteger(value) ? value : Number(value.toPrecision(6));
}

/** Our time to reach the reference's loss at each level, as a share of its time, or in seconds if its time is unknown. */
function raceTable(): string {
  const ats = [...new Set(results.flatMap(({ levels }) => levels.map(({ at }) => at)))];
  ats.sort((a, b) => (a === 'last' ? 1 : b === 'last' ? -1 : a - b));
  const columns = [
    left('group'),
    left(''),
    ...['ref. loss', 'ref. s', 'ref. ms/step', 'our ms/step'].map(right),
    ...ats.map((at) => right(at === 'last' ? 'last' : `to ${at}`)),
    ...['our steps', 'after', 'our loss', '', 'MiB, ours / ref.'].map(right),
  ];
  const rows = results.map(({ subject, activation, reference, levels, long, ours }) => {
    const goal = goalOf(levels);
    const last = ours.at(-1);
    const peaks = [Math.max(...ours.map((run) => run.peakRssBytes)), reference?.peakRssBytes];
    return [
      subject,
      activation,
      goal?.loss.toFixed(4) ?? '',
      reference?.seconds.toFixed(1) ?? '',
      milliseconds(reference?.stepSeconds),
      milliseconds(last?.stepSeconds),
      ...ats.map((at) => reachedIn(levels.find((level) => level.at === at))),
      String(goal?.ours?.planned ?? ''),
      long ? share(long.share) : `${last?.seconds.toFixed(1)} s`,
      last?.loss.toFixed(4) ?? '',
      long ? percent(long.difference) : '',
      peaks.map((bytes) => (bytes === undefined ? '' : Math.round(bytes / 2 ** 20))).join(' / '),
    ];
  });
  return `Our time to the reference's loss at each of its steps, as a share of its time; then our loss after a share of its time
${formatTable(columns, rows)}`;
}

function errorTable(): string {
  const columns = ['SVD by expert', 'by block', 'of all', 'reference', 'varpro'].map(right);
  const rows = results.flatMap(({ subject, activation, baselines, meanSquare, levels, ours }) => {
    if (!baselines) return [];
    const errors = [goalOf(levels)?.loss, ours.at(-1)?.loss].map((loss) => loss && loss / meanSquare);
    const all = [baselines.perExpert, baselines.grouped, baselines.shared, ...errors];
    return [[subject, activation, ...all.map((error) => error?.toFixed(4) ?? '')]];
  });
  return rows.length
    ? `Relative squared error with as many parameters\n${formatTable([left('group'), left(''), ...columns], rows)}`
    : '';
}

function summary(kind: Kind): string[] {
  const raced = results.filter((it) => it.kind === kind && it.reference);
  if (raced.length === 0) return [];
  const lines: string[] = [];
  const shares = raced.flatMap(({ subject, activation, levels }) => {
    const reached = goalOf(levels)?.share;
    return reached === undefined ? [] : [{ of: `${subject}, ${activation}`, value: reached }];
  });
  const worst = shares.reduce((a, b) => (b.value > a.value ? b : a), { of: '', value: 0 });
  const steps = raced[0]?.reference?.steps;
  if (shares.length)
    lines.push(
      `reaches the reference's ${steps}-step loss in ${share(mean(shares.map(({ value }) => value)))} of its time (mean), ${share(worst.value)} at worst (${worst.of})`,
    );
  if (shares.length < raced.length)
    lines.push(`does not reach it in ${raced.length - shares.length} of ${raced.length} races`);
  const longs = raced.flatMap(({ long }) => long ?? []);
  const differences = longs.map(({ difference }) => difference);
  lines.push(
    `at ${share(mean(longs.map((long) => long.share)))} of its time ${percent(mean(differences))} (mean), ${percent(Math.max(...differences))} at worst`,
  );
  return lines.map((line) => `${kind}: ${line}`);
}

/** 0.04 → "1/25" */
function share(value: number): string {
  if (value > 1) return `×${value.toFixed(1)}`;
  const inverse = 1 / value;
  return `1/${inverse < 10 ? inverse.toFixed(1) : Math.round(inverse)}`;
}

function percent(value: number): string {
  return `${value > 0 ? '+' : '−'}${Math.abs(100 * value).toFixed(1)} %`;
}

function milliseconds(seconds: number | undefined): string {
  return seconds === undefined ? '' : (1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0);
}

function reachedIn(level: Reached | undefined): string {
  if (!level) return '';
  if (!level.ours) return '–';
  return level.share === undefined ? `${level.ours.seconds.toFixed(1)} s` : share(level.share);
}
