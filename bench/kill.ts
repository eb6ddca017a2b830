/**
 * `npm run test:kill -- [trials] [seed] [way]`: runs the kill trials of `npm test` many times. `way` limits it to one way, such as
 * "across machines". Exits with 1 if a trial found a problem.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { COMMANDS, killRuns } from '../fixtures/kill-runs.js';

const [trials = 100, seed = 1] = process.argv.slice(2, 4).map(Number);
const only = COMMANDS.filter((way) => way === process.argv[4]);
const root = mkdtempSync(join(tmpdir(), 'mobe-kill-'));
const report = await killRuns(root, trials, seed, (line) => console.log(line), only.length ? only : COMMANDS);
rmSync(root, { recursive: true, force: true });
console.log(JSON.stringify(report, null, 2));
process.exitCode = report.problems.length ? 1 : 0;
