/**
 * Tests the paper's claims about MoBE on the trained fixture: other methods with equal parameters, activations, number of bases
 * and rank, noise, experts a token. Prints a table for each study. Writes bench/results/study.json and study.html. docs/studies.md
 * has the definitions and the conclusions.
 *
 *   npm run bench:study -- [flags]
 *
 *   --text fixtures/evaluation.txt   text that models are scored on; a longer text gives a more exact nll
 *   --bytes 40000                    most bytes to use, from the start of the text
 *   --out bench/results/study        output files without .json and .html
 *   --quick                          a short trial: few variants, few steps, output in out/
 */
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { EVALUATION_TEXT } from '../fixtures/paths.js';
import { VERSION } from '../src/version.js';
import { machine } from './machine.js';
import { studyPage } from './study/page.js';
import { type Result, runStudies } from './study/results.js';
import { FULL, QUICK, studies } from './study/studies.js';
import { studyTable } from './study/table.js';
import { source } from './study/variants.js';
import { type Score, Workshop } from './study/workshop.js';

const { values: flags } = parseArgs({
  options: {
    text: { type: 'string', default: EVALUATION_TEXT },
    bytes: { type: 'string', default: '40000' },
    out: { type: 'string' },
    quick: { type: 'boolean', default: false },
  },
});
const out = flags.out ?? (flags.quick ? 'out/study' : 'bench/results/study');
const scale = flags.quick ? QUICK : FULL;

const began = performance.now();
const folder = mkdtempSync(join(process.env.MOBE_BENCH_DIR ?? tmpdir(), 'mobe-study-'));
let results: Result[];
let whole: Score;
const bytes = readLines(flags.text, Number(flags.bytes));
try {
  writeFileSync(join(folder, 'text'), bytes);
  const workshop = new Workshop(folder, join(folder, 'text'));
  whole = await workshop.score(source);
  results = await runStudies(studies(scale), workshop, (line) => console.error(line));
} finally {
  rmSync(folder, { recursive: true, force: true });
}

const text = {
  name: basename(flags.text),
  bytes: bytes.length,
  sha256: createHash('sha256').update(bytes).digest('hex'),
};
const seconds = Math.round((performance.now() - began) / 1000);
const record = { mobe: VERSION, machine, seconds, text, steps: scale.steps, source: whole, studies: results };
mkdirSync(dirname(out), { recursive: true });
writeFileSync(`${out}.json`, `${JSON.stringify(record, rounded, 2)}\n`);
writeFileSync(`${out}.html`, studyPage(record));
for (const result of results) console.log(`${studyTable(result, whole.nll)}\n`);
console.log(`source: nll ${whole.nll.toFixed(4)}; ${out}.json, ${out}.html`);

/** The first lines of a file, at most `most` bytes. */
function readLines(file: string, most: number): Buffer {
  if (!Number.isInteger(most) || most < 1) throw new TypeError('--bytes takes a whole number from 1 on');
  const all = readFileSync(file);
  return all.length <= most ? all : all.subarray(0, all.lastIndexOf('\n', most - 1) + 1);
}

function rounded(_: string, value: unknown): unknown {
  return typeof value === 'number' && !Number.isInteger(value) ? Number(value.toPrecision(6)) : value;
}
