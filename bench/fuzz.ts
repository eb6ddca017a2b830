/** `npm run fuzz [-- cases [seed]]`: gives damaged and hostile input to every reader of untrusted bytes; see docs/reliability.md. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FuzzFailure, runFuzz } from '../fixtures/fuzz/run-fuzz.js';
import { createTargets } from '../fixtures/fuzz/targets.js';

const [cases = 160_000, seed = 0] = process.argv.slice(2).map(Number);
const root = mkdtempSync(join(tmpdir(), 'mobe-fuzz-'));
try {
  const targets = await createTargets(root);
  const each = Math.ceil(cases / targets.length);
  const before = process.resourceUsage().maxRSS;
  let total = 0;
  for (const target of targets) {
    const { name, read, refused, slowestMs, seconds } = await runFuzz(target, each, seed);
    total += each;
    const errors = [...refused].sort(([, a], [, b]) => b - a).map(([error, count]) => `${error} ${count}`);
    console.log(`${name}: ${each} cases in ${seconds.toFixed(1)} s, slowest ${slowestMs.toFixed(1)} ms`);
    console.log(`  read ${read}; refused: ${errors.join(', ')}`);
  }
  const { maxRSS } = process.resourceUsage();
  console.log(
    `${total} cases from seed ${seed}; peak memory ${Math.round(maxRSS / 1024)} MiB, ${Math.round((maxRSS - before) / 1024)} MiB above the start`,
  );
} catch (error) {
  if (!(error instanceof FuzzFailure)) throw error;
  console.error(error.message);
  process.exitCode = 1;
} finally {
  rmSync(root, { recursive: true });
}
