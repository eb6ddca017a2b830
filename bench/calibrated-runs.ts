/** Benchmarks of calibrated compression share this: their flags, texts and calibration records. It runs commands as their users do. */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { parseArgs, promisify } from 'node:util';
import { CLI, EVALUATION_TEXT, RECORD_PEAK, TINY_MODEL } from '../fixtures/paths.js';
import type { ProcessCosts } from '../fixtures/record-peak.js';
import { type CalibrationText, calibrationText } from './calibration-text.js';

/** Bytes of a window of held-out text, and of a calibration sequence. A token of the fixture is a byte. */
export const WINDOW = 256;

/** The flags of a benchmark, with their defaults. */
export interface BenchFlags {
  /** The file with the held-out text, and the most bytes of it to score on. */
  readonly heldOut: string;
  readonly bytes: number;
  readonly seeds: readonly number[];
  /** Whether a way of this name is wanted. */
  wants(name: string): boolean;
  readonly out: string;
  readonly resume: boolean;
  /** A short trial. */
  readonly quick: boolean;
  /** Options of `mobe compress` for a short trial. */
  readonly steps: readonly string[];
}

/** Reads the flags of a benchmark whose results have this name. */
export function readFlags(name: string): BenchFlags {
  const { values } = parseArgs({
    options: {
      heldout: { type: 'string', default: EVALUATION_TEXT },
      bytes: { type: 'string', default: 'Infinity' },
      seeds: { type: 'string' },
      only: { type: 'string', default: '' },
      out: { type: 'string' },
      resume: { type: 'boolean', default: false },
      quick: { type: 'boolean', default: false },
    },
  });
  const { quick, resume } = values;
  const names = values.only.split('|');
  return {
    heldOut: values.heldout,
    bytes: quick ? 20 * WINDOW : Number(values.bytes),
    seeds: (values.seeds ?? (quick ? '0' : '0,1,2')).split(',').map(Number),
    wants: (way) => names.some((it) => way.includes(it)),
    out: values.out ?? (quick ? `out/${name}.json` : `bench/results/${name}.json`),
    resume,
    quick,
    steps: quick ? ['--steps', '25'] : [],
  };
}

/** A command's result and costs. */
export interface Run extends ProcessCosts {
  readonly json: unknown;
  readonly seconds: number;
}

/** A text by its size and hash. */
interface TextFacts {
  readonly bytes: number;
  readonly sha256: string;
}

/** A folder for runs, with both texts in it. */
export interface CalibratedRuns {
  /** The path of a file in the folder. */
  at(name: string): string;
  readonly heldOut: string;
  readonly texts: {
    readonly heldOut: TextFacts & { readonly name: string };
    readonly calibration: TextFacts & Omit<CalibrationText, 'text'>;
  };
  /** Runs a command in a process of its own. */
  mobe(...args: string[]): Promise<Run>;
  /** A record of so many tokens, made once for each seed, and what it took to make. */
  calibrated(tokens: number, seed: number): Promise<Omit<Run, 'json'> & { readonly folder: string }>;
  close(): void;
}

/** Makes the folder. */
export function openRuns(name: string, { heldOut, bytes }: Pick<BenchFlags, 'heldOut' | 'bytes'>): CalibratedRuns {
  const folder = mkdtempSync(join(process.env.MOBE_BENCH_DIR ?? tmpdir(), `mobe-${name}-`));
  const at = (file: string): string => join(folder, file);
  const whole = readFileSync(heldOut);
  const scored = whole.subarray(0, bytes);
  const { text, ...proof } = calibrationText(whole.toString('latin1'));
  writeFileSync(at('calibration.txt'), text);
  writeFileSync(at('heldout.txt'), scored);
  const texts = {
    heldOut: { name: basename(heldOut), bytes: scored.byteLength, sha256: sha256(scored) },
    calibration: { bytes: text.length, sha256: sha256(text), ...proof },
  };
  console.error(`calibration text: ${JSON.stringify(texts.calibration)}`);

  const mobe = async (...args: string[]): Promise<Run> => {
    const peakFile = at(`peak-${Math.random()}`);
    const started = performance.now();
    const { stdout } = await promisify(execFile)(process.execPath, ['--import', RECORD_PEAK, CLI, ...args], {
      env: { ...process.env, PEAK_FILE: peakFile },
      maxBuffer: 2 ** 28,
    });
    const seconds = (performance.now() - started) / 1000;
    return { json: JSON.parse(stdout), seconds, ...(JSON.parse(readFileSync(peakFile, 'utf8')) as ProcessCosts) };
  };
  return {
    at,
    heldOut: at('heldout.txt'),
    texts,
    mobe,
    async calibrated(tokens, seed) {
      const record = at(`record-${tokens}-${seed}`);
      const notes = `${record}.json`;
      if (!existsSync(notes)) {
        const options = ['--tokens', String(tokens), '--sequence-length', String(WINDOW), '--seed', String(seed)];
        const source = ['--text', at('calibration.txt')];
        const { json: _, ...costs } = await mobe('calibrate', TINY_MODEL, record, ...source, ...options, '--json');
        writeFileSync(notes, JSON.stringify(costs));
      }
      return { folder: record, ...JSON.parse(readFileSync(notes, 'utf8')) };
    },
    close: () => rmSync(folder, { recursive: true, force: true }),
  };
}

/** The measurements of an earlier run. Throws if its texts were others. */
export function earlierMeasurements<M>(out: string, texts: CalibratedRuns['texts']): M[] {
  const found = JSON.parse(readFileSync(out, 'utf8')) as { texts: unknown; measurements: M[] };
  if (JSON.stringify(found.texts) !== JSON.stringify(texts)) throw new Error(`${out} was measured on other texts`);
  return found.measurements;
}

/** Writes facts and measurements, a line for each measurement. */
export function writeMeasurements(out: string, facts: object, measurements: readonly object[]): void {
  const lines = measurements.map((it) => JSON.stringify(it)).join(',\n  ');
  writeFileSync(out, `${JSON.stringify(facts, null, 1).slice(0, -2)},\n "measurements": [\n  ${lines}\n ]\n}\n`);
}

function sha256(bytes: string | Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
