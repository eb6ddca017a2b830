/**
 * Compares what calibration gives at one size: the trained fixture, compressed in every way of quality-rows.ts, with several seeds.
 * Prints a table. Writes bench/results/quality.json after each measurement.
 *
 *   npm run bench:quality -- --heldout <file> [flags]
 *
 *   --heldout fixtures/evaluation.txt   text to score on; the default is so short that it only shows that all runs
 *   --bytes <n>                         most bytes of it to score on
 *   --seeds 0,1,2                       each seed chooses other calibration sequences and another start of the fits
 *   --only <text>                       only ways whose name contains the text; several, separated by "|"
 *   --out bench/results/quality.json
 *   --resume                            keep the measurements that the output file has already
 *   --quick                             a short trial: one seed, 2048 calibration tokens, few steps, 20 windows; output in out/
 *
 * PYTHON names the Python whose standard library is the calibration text (calibration-text.ts).
 */
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { loadavg } from 'node:os';
import { dirname } from 'node:path';
import { TINY_MODEL } from '../fixtures/paths.js';
import type { ProcessCosts } from '../fixtures/record-peak.js';
import { formatTable, left, right } from '../src/cli/table.js';
import { formatBytes, formatSeconds } from '../src/format.js';
import { PROJECTIONS } from '../src/models/family.js';
import { VERSION } from '../src/version.js';
import type { Evaluation, ModelScore } from '../streams/operations/evaluate.js';
import { earlierMeasurements, openRuns, readFlags, WINDOW, writeMeasurements } from './calibrated-runs.js';
import { mean } from './levels.js';
import { machine } from './machine.js';
import { REFERENCE, TOKENS, WAYS, type Way } from './quality-rows.js';
import { readGroups } from './study/checkpoint.js';
import { squaredDistance, squaredNorm } from './study/noise.js';

/** Models that are scored at once, each on one thread, because the model is too small for more. */
const LANES = 2;

const flags = readFlags('quality');
const { out, quick, seeds, steps } = flags;

/** The result of one run. */
interface Measurement {
  readonly way: string;
  readonly tokens: number;
  readonly seed: number;
  /** Rise of the negative log-likelihood over the source's, nats a byte, and its standard error over windows. */
  readonly nllDifference: number;
  readonly standardError?: number | undefined;
  /** KL divergence of the predictions from the source's, nats. */
  readonly divergence: number;
  /** ‖W − Ŵ‖²/‖W‖², mean of all layers' projections. Dense ones count with 0. */
  readonly error: number;
  /** Bytes of tensors. */
  readonly bytes: number;
  /** Duration of calibration and compression together. */
  readonly seconds: number;
  /** Processor time of all threads. Other work on the machine changes it less than `seconds`. */
  readonly processorSeconds: number;
  readonly peakRssBytes: number;
  readonly version: string;
}

/** A compressed model that waits for its score. */
interface Made {
  readonly folder: string;
  readonly what: Pick<Measurement, 'way' | 'tokens' | 'seed' | 'bytes' | 'seconds' | keyof ProcessCosts>;
}

const load = loadavg()[0];
const runs = openRuns('quality', flags);
const { at, mobe, calibrated, texts } = runs;
const measurements: Measurement[] = flags.resume && existsSync(out) ? earlierMeasurements(out, texts) : [];
mkdirSync(dirname(out), { recursive: true });
try {
  for (const seed of seeds) {
    const made: Made[] = [];
    for (const { way, tokens } of wanted()) {
      if (measurements.some((it) => it.way === way.name && it.tokens === tokens && it.seed === seed)) continue;
      try {
        made.push(await make(way, tokens, seed));
      } catch (error) {
        // One way that fails must not cost the others.
        console.error(`${way.name}, ${tokens} tokens, seed ${seed} failed: ${(error as Error).message}`);
      }
    }
    await scoreAll(made);
  }
} finally {
  runs.close();
}
console.log(summary());

function wanted(): Array<{ way: Way; tokens: number }> {
  return WAYS.filter(({ name }) => flags.wants(name)).flatMap((way) =>
    way.tokens
      .filter((tokens) => !quick || tokens <= (TOKENS[0] as number) || way.tokens.length === 1)
      .map((tokens) => ({ way, tokens: quick ? Math.min(tokens, TOKENS[0] as number) : tokens })),
  );
}

async function make(way: Way, tokens: number, seed: number): Promise<Made> {
  const record = tokens > 0 ? await calibrated(tokens, seed) : undefined;
  const name = at(`${WAYS.indexOf(way)}-${tokens}-${seed}`);
  const source = record ? ['--calibration', record.folder] : [];
  const options = [...way.options, ...source, ...steps, '--seed', String(seed), '--json'];
  const { json, seconds, processorSeconds, peakRssBytes } = await mobe('compress', TINY_MODEL, name, ...options);
  const what = {
    way: way.name,
    tokens,
    seed,
    bytes: (json as { bytesAfter: number }).bytesAfter,
    seconds: seconds + (record?.seconds ?? 0),
    processorSeconds: processorSeconds + (record?.processorSeconds ?? 0),
    peakRssBytes: Math.max(peakRssBytes, record?.peakRssBytes ?? 0),
  };
  console.error(`made ${way.name}, ${tokens} tokens, seed ${seed}: ${formatSeconds(what.seconds)}`);
  return { folder: name, what };
}

async function scoreAll(made: readonly Made[]): Promise<void> {
  const waiting = [...made];
  const lane = async (): Promise<void> => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      measurements.push(await score(next));
      const facts = { machine: { ...machine, load }, window: WINDOW, texts, reference: REFERENCE };
      writeMeasurements(out, facts, measurements);
      console.error(`scored ${next.what.way}, ${next.what.tokens} tokens, seed ${next.what.seed}`);
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
}

async function score({ folder: model, what }: Made): Promise<Measurement> {
  const options = ['--against', TINY_MODEL, '--text', runs.heldOut, '--window', String(WINDOW), '--threads', '1'];
  const { json } = await mobe('eval', model, ...options, '--json');
  const { comparison } = (json as Evaluation).models[1] as ModelScore;
  const { nllDifference, standardError, divergence } = comparison as NonNullable<typeof comparison>;
  await mobe('expand', model, `${model}-expanded`, '--json');
  const error = await relativeError(`${model}-expanded`);
  for (const done of [model, `${model}-expanded`]) rmSync(done, { recursive: true });
  return { ...what, nllDifference, standardError, divergence, error, version: VERSION };
}

async function relativeError(model: string): Promise<number> {
  const changed = await readGroups(model, PROJECTIONS);
  const errors = (await readGroups(TINY_MODEL, PROJECTIONS)).map(({ experts }, g) => {
    const error = experts.map((values, i) => squaredDistance(values, changed[g]?.experts[i] as Float32Array));
    return mean(error) / mean(experts.map(squaredNorm));
  });
  return mean(errors);
}

/** A table in which each row is the mean of its seeds, with the largest distance of a seed from it. */
function summary(): string {
  const columns = ['way', 'tokens', 'nll', '±', 'KL', 'error', 'bytes', 'time', 'processor', 'peak memory'];
  const rows = WAYS.flatMap((way) =>
    way.tokens.map((tokens) => measurements.filter((it) => it.way === way.name && it.tokens === tokens)),
  ).filter((own) => own.length > 0);
  const of = (own: readonly Measurement[], value: (it: Measurement) => number, digits: number): string => {
    const values = own.map(value);
    const middle = mean(values);
    const spread = Math.max(...values.map((it) => Math.abs(it - middle)));
    return `${middle.toFixed(digits)} (${spread.toFixed(digits)})`;
  };
  const error = REFERENCE.error.toFixed(4);
  const reference = [
    REFERENCE.name,
    '0',
    REFERENCE.nllDifference.toFixed(5),
    '',
    '',
    error,
    '',
    formatSeconds(REFERENCE.seconds),
    formatSeconds(REFERENCE.seconds),
    '',
  ];
  const cells = rows.map((own) => {
    const [first] = own as [Measurement];
    return [
      first.way,
      String(first.tokens),
      of(own, (it) => it.nllDifference, 5),
      mean(own.map((it) => it.standardError ?? Number.NaN)).toFixed(5),
      of(own, (it) => it.divergence, 5),
      of(own, (it) => it.error, 4),
      String(first.bytes),
      formatSeconds(mean(own.map((it) => it.seconds))),
      formatSeconds(mean(own.map((it) => it.processorSeconds))),
      formatBytes(Math.max(...own.map((it) => it.peakRssBytes))),
    ];
  });
  return formatTable(
    columns.map((title, i) => (i === 0 ? left(title) : right(title))),
    [reference, ...cells],
  );
}
