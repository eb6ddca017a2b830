/**
 * `npm run test:farm -- [seed]`: kills the workers of a farm, its submit and its Redis at 50 moments while 200 groups are fitted, and
 * compares every byte with a local run. Then measures the queue with 10 000 jobs that compute nothing. Exits with 1 if something differs.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { farmTrial } from '../fixtures/farm.js';
import { HAS_REDIS } from '../fixtures/redis.js';
import { measureQueue } from './farm-queue.js';

if (!HAS_REDIS) console.log('skipped: redis-server is not installed (Debian: apt-get install redis-server)');
else {
  const seed = Number(process.argv[2] ?? 1);
  const root = mkdtempSync(join(tmpdir(), 'mobe-farm-'));
  try {
    const trial = { layers: 100, steps: 40, workers: 4, kills: 50, pauseMs: 1000, seed };
    const { different, problems } = await farmTrial(join(root, 'trial'), trial, (line) => console.log(line));
    await measureQueue(join(root, 'queue'), 10_000, (line) => console.log(line));
    process.exitCode = different.length || problems.length ? 1 : 0;
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}
