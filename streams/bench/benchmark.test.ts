import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { pageFaults } from '../../fixtures/page.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { describeReport } from '../../src/cli/bench-table.js';
import { MeasurementError, NotACheckpointError } from '../../src/errors.js';
import { reportPage } from './bench-page.js';
import { type BenchReport, benchmark } from './benchmark.js';
import type { Row } from './rows.js';
import { runTask } from './run-task.js';

const folder = temporaryFolder();
const model = join(folder, 'model');

beforeAll(async () => {
  // The model is large enough that a slowed stage stands out from the noise of processes and disks.
  await generateCheckpoint(model, { layers: 2, experts: 8, rows: 256, cols: 512, shardBytes: 8e6 });
});

describe('a stage that is slowed is named as what limits the conversion', THOROUGH, () => {
  test.each([
    ['read', 200, /^read-bound: read \d/],
    ['hash', 40, /^processor-bound: hash \d/],
    ['write', 20, /^disk-bound: write \d/],
  ])('%s', async (stage, factor, limit) => {
    const { rows } = await benchmark(model, { folder, rounds: 1, stages: ['convert'], slow: { stage, factor } });
    const ours = rows.find(({ way, cache }) => way === 'ours' && cache === 'warm') as Row;
    expect(ours.limit).toMatch(limit);
  });

  test('fit', async () => {
    const { rows } = await benchmark(model, {
      folder,
      rounds: 1,
      stages: ['pipeline'],
      slow: { stage: 'fit', factor: 20 },
    });
    expect(rows[0]?.limit).toMatch(/^processor-bound: fit/);
  });
});

describe('a report', () => {
  let report: BenchReport;
  beforeAll(async () => {
    report = await benchmark(model, { folder, rounds: 2, bytes: 9e6, stages: ['read', 'write', 'convert'] });
  });

  test('has every way with its figures, and whole shards as its source', () => {
    const { rows, source } = report;
    expect(source.shards.length).toBeGreaterThanOrEqual(1);
    expect(source.bytes).toBeLessThanOrEqual(9e6);
    const ours = rows.filter(({ way, cache }) => way === 'ours' && cache !== 'cold');
    expect(ours.map(({ stage }) => stage)).toEqual(['read', 'write', 'convert']);
    for (const row of ours) {
      expect(row.rate.low).toBeGreaterThan(0);
      expect(row.rate.median).toBeGreaterThanOrEqual(row.rate.low);
      expect(row.rate.high).toBeGreaterThanOrEqual(row.rate.median);
      expect(row.ratio?.median).toBeGreaterThan(0);
      expect(row.heldBytes).toBeGreaterThan(0);
      expect(row.peakRssBytes).toBeGreaterThan(30e6);
    }
  });

  test('leaves nothing behind', () => {
    expect(readdirSync(folder)).toEqual(['model']);
  });

  test('as a table names every way, every target and what limits the conversion', () => {
    const text = describeReport(report);
    for (const { way } of report.rows) expect(text).toContain(way);
    for (const { target, found } of report.targets)
      expect(text.split('\n').some((line) => line.startsWith(target) && line.includes(found))).toBe(true);
    expect(text).toMatch(/convert: ours, warm: \S+-bound: /);
  });

  test('as a page is well-formed and fetches nothing', () => {
    const page = reportPage({ ...report, notes: ['a < b & "c"'] }, [{ title: 'More', body: '<p>more</p>' }]);
    expect(pageFaults(page)).toEqual([]);
    expect(page).toContain('a &lt; b &amp; &quot;c&quot;');
    for (const { way } of report.rows) expect(page).toContain(way);
  });
});

test('a model that is none is refused before anything is measured', async () => {
  await expect(benchmark(join(folder, 'nothing'), { folder })).rejects.toThrow(NotACheckpointError);
});

test('what goes wrong in the process of a measurement is told', async () => {
  const source = { folder: model, shards: ['no such shard'], bytes: 1 };
  await expect(runTask({ kind: 'pread', source })).rejects.toThrow(MeasurementError);
  await expect(runTask({ kind: 'pread', source })).rejects.toThrow('no such shard');
});
