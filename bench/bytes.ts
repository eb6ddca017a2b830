/**
 * Compares bytes: the trained fixture's gate and up matrices as factors in every dtype, and as weights in 2, 3, 4 and 8 bits, all with the
 * same calibration record. Prints a table and the targets. Writes bench/results/bytes.json, and bytes.svg, after each seed.
 *
 *   npm run bench:bytes -- --heldout <file> [flags]
 *
 *   --heldout fixtures/evaluation.txt   text to score on; the default is so short that it only shows that all runs
 *   --bytes <n>                         most bytes of it to score on
 *   --seeds 0,1,2                       each seed chooses other calibration sequences and another start of the fits
 *   --only <text>                       only ways whose name contains the text; several, separated by "|"
 *   --out bench/results/bytes.json
 *   --resume                            keep the measurements that the output file has already
 *   --quick                             a short trial: one seed, few steps, 20 windows; output in out/
 *
 * PYTHON names the Python whose standard library is the calibration text (calibration-text.ts).
 */
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { TINY_MODEL } from '../fixtures/paths.js';
import { codesOf, roundScale } from '../src/checkpoint/encode-matrix.js';
import { storedBytes } from '../src/checkpoint/encoding.js';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import { formatTable, left, right } from '../src/cli/table.js';
import { formatSeconds } from '../src/format.js';
import { integerEncoding, quantiseMatrix } from '../src/methods/quantise/quantise-matrix.js';
import { lines } from '../src/page/charts.js';
import { VERSION } from '../src/version.js';
import type { Evaluation, ModelScore } from '../streams/operations/evaluate.js';
import { type BytesWay, SCALE_GROUP, TARGETS, WAYS } from './bytes-rows.js';
import { earlierMeasurements, openRuns, readFlags, WINDOW, writeMeasurements } from './calibrated-runs.js';
import { type Round, writeRounded } from './dense-copy.js';
import { mean } from './levels.js';
import { machine } from './machine.js';
import { publishedGptq } from './published-gptq.js';

const TOKENS = 32768;
/** Evaluations at once, each on one thread, because the model is too small for more. */
const LANES = 2;

const flags = readFlags('bytes');
const { out, seeds, steps } = flags;

/** The result of one run. */
interface Measurement {
  readonly way: string;
  readonly seed: number;
  /** Bytes of gate and up, as a share of those in bf16. */
  readonly share: number;
  /** KL divergence of the predictions from the source's, nats. */
  readonly divergence: number;
  /** Rise of the negative log-likelihood over the source's, nats a byte, and its standard error over windows. */
  readonly nllDifference: number;
  readonly standardError?: number | undefined;
  /** Processor time of compression; absent for weights that the benchmark rounds itself. */
  readonly processorSeconds?: number | undefined;
  readonly version: string;
}

/** A compressed model that waits for its score. */
interface Made extends Pick<Measurement, 'way' | 'seed' | 'share' | 'processorSeconds'> {
  readonly folder: string;
}

const runs = openRuns('bytes', flags);
const { texts } = runs;
const measurements: Measurement[] = flags.resume && existsSync(out) ? earlierMeasurements(out, texts) : [];
const dense = await gateAndUpBytes(TINY_MODEL);
mkdirSync(dirname(out), { recursive: true });
try {
  for (const seed of seeds) {
    const made: Made[] = [];
    for (const way of wanted(seed)) {
      try {
        made.push(await make(way, seed));
      } catch (error) {
        // One way that fails must not cost the others.
        console.error(`${way.name}, seed ${seed} failed: ${(error as Error).message}`);
      }
    }
    await Promise.all(Array.from({ length: LANES }, (_, lane) => score(made.filter((_, i) => i % LANES === lane))));
    writeMeasurements(out, { machine, window: WINDOW, tokens: TOKENS, texts }, measurements);
    writeFileSync(out.replace(/json$/, 'svg'), picture());
  }
} finally {
  runs.close();
}
console.log(summary());
console.log(targets().join('\n'));

function wanted(seed: number): BytesWay[] {
  return WAYS.filter(
    ({ name, everySeed }) =>
      flags.wants(name) &&
      (everySeed || seed === seeds[0]) &&
      !measurements.some((it) => it.way === name && it.seed === seed),
  );
}

async function make(way: BytesWay, seed: number): Promise<Made> {
  const record = await runs.calibrated(TOKENS, seed);
  const folder = runs.at(`${WAYS.indexOf(way)}-${seed}`);
  if (way.kind === 'dense') {
    const form = { width: way.width, scaleGroup: SCALE_GROUP };
    const signedScales = way.rounding === 'feedback, signed scales';
    let bytes = 0;
    const round: Round = (weights, size, gram) => {
      const encoding = integerEncoding(form);
      const { data, scales } = storedBytes(encoding, size.rows, size.cols);
      bytes += data + scales;
      if (way.rounding === 'as published')
        return publishedGptq(weights, gram, form, (scale) => roundScale(codesOf(encoding).blocks, scale));
      return quantiseMatrix(weights, size, form, way.rounding === 'nearest' ? undefined : { gram, signedScales });
    };
    await writeRounded(folder, record.folder, round);
    return { way: way.name, seed, share: bytes / dense, folder };
  }
  const options = [...way.options, ...steps, '--calibration', record.folder, '--seed', String(seed), '--json'];
  const { processorSeconds, seconds } = await runs.mobe('compress', TINY_MODEL, folder, ...options);
  console.error(`made ${way.name}, seed ${seed}: ${formatSeconds(seconds)}`);
  return { way: way.name, seed, share: (await gateAndUpBytes(folder)) / dense, processorSeconds, folder };
}

/** Bytes of all tensors of gate and up: weights, or factors with what their experts share. */
async function gateAndUpBytes(folder: string): Promise<number> {
  const { tensors, files } = await openCheckpoint(folder);
  await files.close();
  return [...tensors.values()]
    .filter(({ name }) => /experts\.\d+\.(gate|up)_proj\.|\.[BW]_(gate|up)/.test(name))
    .reduce((sum, { start, end }) => sum + end - start, 0);
}

async function score(made: readonly Made[]): Promise<void> {
  if (made.length === 0) return;
  const options = ['--against', TINY_MODEL, '--text', runs.heldOut, '--window', String(WINDOW), '--threads', '1'];
  const { json } = await runs.mobe('eval', ...made.map(({ folder }) => folder), ...options, '--json');
  for (const [i, { folder, ...what }] of made.entries()) {
    const { comparison } = (json as Evaluation).models[i + 1] as ModelScore;
    const { divergence, nllDifference, standardError } = comparison as NonNullable<typeof comparison>;
    measurements.push({ ...what, divergence, nllDifference, standardError, version: VERSION });
    rmSync(folder, { recursive: true });
  }
}

/** A way with the means of its measurements, and the largest distance of a seed's KL from its mean. */
interface Row {
  readonly way: BytesWay;
  readonly seeds: number;
  readonly share: number;
  readonly divergence: number;
  readonly spread: number;
  readonly nllDifference: number;
  readonly standardError: number;
}

function rows(): Row[] {
  return WAYS.flatMap((way) => {
    const own = measurements.filter((it) => it.way === way.name);
    if (own.length === 0) return [];
    const of = (value: (it: Measurement) => number): number => mean(own.map(value));
    const divergence = of((it) => it.divergence);
    return {
      way,
      seeds: own.length,
      share: of((it) => it.share),
      divergence,
      spread: Math.max(...own.map((it) => Math.abs(it.divergence - divergence))),
      nllDifference: of((it) => it.nllDifference),
      standardError: of((it) => it.standardError ?? Number.NaN),
    };
  }).sort((a, b) => b.share - a.share);
}

function summary(): string {
  const columns = ['bytes', 'way', 'seeds', 'KL', '±', 'nll', '±'];
  return formatTable(
    columns.map((title) => (title === 'way' ? left(title) : right(title))),
    rows().map(({ way, seeds: count, share, divergence, spread, nllDifference, standardError }) => [
      `${(100 * share).toFixed(1)} %`,
      way.name,
      String(count),
      divergence.toFixed(5),
      spread.toFixed(5),
      nllDifference.toFixed(5),
      standardError.toFixed(5),
    ]),
  );
}

/** Says what was found beside each target. Targets of missing rows are left out. */
function targets(): string[] {
  const found = new Map(rows().map((row) => [row.way.name, row]));
  const kl = (name: string): number => found.get(name)?.divergence ?? Number.NaN;
  const between = (rival: string, share: number): number => {
    const [two, three] = [found.get(`${rival} int2`), found.get(`${rival} int3`)];
    if (!two || !three) return Number.NaN;
    const part = (share - two.share) / (three.share - two.share);
    return two.divergence ** (1 - part) * three.divergence ** part;
  };
  const { share, of } = TARGETS.between;
  const ratios: Array<[string, number, number]> = [
    ['int8 factors against bf16 factors', kl('m allocated, int8') / kl('m allocated, bfloat16'), TARGETS.int8],
    ['fp8 factors against bf16 factors', kl('m allocated, fp8') / kl('m allocated, bfloat16'), TARGETS.fp8],
  ];
  for (const rival of ['GPTQ', 'GPTQ as published,'])
    for (const repaired of ['', ', down repaired'])
      ratios.push(
        [
          `factors${repaired} against ${rival} int3, of the same bytes`,
          kl(`m and dtypes at 20.3 %${repaired}`) / kl(`${rival} int3`),
          TARGETS.threeBits,
        ],
        [
          `factors${repaired} at ${100 * share} % against what lies between ${rival} int2 and int3`,
          kl(`m and dtypes at 17.0 %${repaired}`) / between(rival, share),
          of,
        ],
      );
  return ratios
    .filter(([, ratio]) => Number.isFinite(ratio))
    .map(([what, ratio, target]) => `KL of ${what}: ${ratio.toFixed(3)} ×, target ${target} ×`);
}

function picture(): string {
  const all = rows();
  const series = [...new Set(WAYS.map((way) => way.series))].map((label) => ({
    label,
    points: all
      .filter(({ way }) => way.series === label)
      .map(({ share, divergence }) => ({ x: 100 * share, y: divergence }))
      .sort((a, b) => a.x - b.x),
  }));
  return `${lines({
    title: 'KL against bytes, gate and up of the trained fixture',
    x: { title: '% of the bytes in bf16', scale: 'linear' },
    y: { title: 'KL, nats', scale: 'logarithmic' },
    series: series.filter(({ points }) => points.length > 0),
  })}\n`;
}
