/** Text to calibrate the trained fixture with: Python source of the machine's standard library (PSF licence), which is not copied. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createRandom } from '../src/linalg/random.js';

/** Shorter lines, like `import os`, are in any two files. */
const LINE_BYTES = 30;
const FILE_BYTES = { least: 2_000, most: 200_000, used: 24_000 };
const TEXT_BYTES = 2_000_000;
/** Packages, and old sources that other tests parse. */
const LEFT_ASIDE = /site-packages|dist-packages|lib2to3\/tests\/data/;
const PROBE = { bytes: 80, step: 97 };

/** A text, and the proof that it has nothing of another one. */
export interface CalibrationText {
  readonly text: string;
  readonly files: number;
  /** Files that were left out because they share a line of at least `LINE_BYTES` with the other text. */
  readonly leftOut: number;
  /** Lines of at least `LINE_BYTES` that both texts have. */
  readonly sharedLines: number;
  /** Pieces of 80 bytes of the other text, and how many of them this one has. */
  readonly probes: number;
  readonly probesFound: number;
}

/** Joins files of the standard library of `python`, in random order, without those that share a line with `heldOut`. */
export function calibrationText(heldOut: string, python = process.env.PYTHON ?? 'python3'): CalibrationText {
  const command = 'import sysconfig; print(sysconfig.get_paths()["stdlib"])';
  const root = execFileSync(python, ['-c', command], { encoding: 'utf8' }).trim();
  const other = new Set(longLines(heldOut));
  const parts: string[] = [];
  let bytes = 0;
  let leftOut = 0;
  for (const path of shuffled(sources(root))) {
    if (bytes >= TEXT_BYTES) break;
    const content = readFileSync(join(root, path));
    if (content.byteLength < FILE_BYTES.least || content.byteLength > FILE_BYTES.most) continue;
    // Latin-1 keeps bytes apart; only ASCII files are taken, so it is the text as well.
    if (content.some((byte) => byte > 127)) continue;
    const source = content.toString('latin1');
    if (longLines(source).some((line) => other.has(line))) {
      leftOut++;
      continue;
    }
    const part = source.slice(0, FILE_BYTES.used);
    parts.push(part);
    bytes += part.length;
  }
  const text = parts.join('');
  return { text, files: parts.length, leftOut, ...compare(text, heldOut) };
}

/** Counts the long lines and the probes of the held-out text that a text has too. */
function compare(text: string, heldOut: string): Pick<CalibrationText, 'sharedLines' | 'probes' | 'probesFound'> {
  const own = new Set(longLines(text));
  let probes = 0;
  let probesFound = 0;
  for (let at = 0; at + PROBE.bytes <= heldOut.length; at += PROBE.step, probes++)
    if (text.includes(heldOut.slice(at, at + PROBE.bytes))) probesFound++;
  return { sharedLines: new Set(longLines(heldOut).filter((line) => own.has(line))).size, probes, probesFound };
}

const longLines = (text: string): string[] =>
  text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line.length >= LINE_BYTES);

const sources = (root: string): string[] =>
  readdirSync(root, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.py') && !LEFT_ASIDE.test(path))
    .sort();

function shuffled(paths: string[]): string[] {
  const random = createRandom(7);
  for (let i = paths.length - 1; i > 0; i--) {
    const other = random.below(i + 1);
    [paths[i], paths[other]] = [paths[other] as string, paths[i] as string];
  }
  return paths;
}
