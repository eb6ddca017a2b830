import { execFile } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { CLI, TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import type { BenchReport } from '../../streams/bench/benchmark.js';

const folder = temporaryFolder();
const run = promisify(execFile);

test('mobe bench measures every stage of a checkpoint, prints one object and writes a page', {
  ...THOROUGH,
  timeout: 120_000,
}, async () => {
  const disk = join(folder, 'disk');
  mkdirSync(disk);
  const page = join(folder, 'page.html');
  const flags = ['--rounds', '1', '--json', '--html', page];
  const { stdout } = await run(process.execPath, [CLI, 'bench', TINY_MODEL, disk, ...flags], { maxBuffer: 2 ** 26 });
  const { rows, targets, source } = JSON.parse(stdout) as BenchReport;
  expect([...new Set(rows.map(({ stage }) => stage))]).toEqual([
    'read',
    'compute',
    'hop',
    'write',
    'convert',
    'pipeline',
  ]);
  expect(source.shards).toHaveLength(3);
  expect(targets).toHaveLength(6);
  expect(rows.find(({ stage }) => stage === 'pipeline')?.limit).toMatch(/-bound: /);
  expect(readFileSync(page, 'utf8')).toMatch(/^<!DOCTYPE html>/);
  expect(readdirSync(disk)).toEqual([]);
});
