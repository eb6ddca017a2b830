/** Memory is a promise: processes stay within what was planned for them, and need more than half of it. */
import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { type GeneratedModel, generateCheckpoint } from '../../fixtures/generate.js';
import { generateRecord } from '../../fixtures/generate-record.js';
import { CLI, RECORD_PEAK, TINY_MODEL } from '../../fixtures/paths.js';
import type { ProcessCosts } from '../../fixtures/record-peak.js';
import { startService } from '../../fixtures/services.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { thoroughBut } from '../../fixtures/thorough.js';
import { openRecord } from '../../src/calibration/open-record.js';
import { floatTensor } from '../../src/checkpoint/header.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { planCompression } from '../../src/conversion/compression-plan.js';
import { type GroupPlan, sourceBytes } from '../../src/conversion/group-plan.js';
import { expectedPeak, memoryTerms } from '../../src/conversion/memory-terms.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { workload } from '../compute/worker.js';

/** Runs on a machine that does much else. */
const PATIENCE_MS = 240_000;

const folder = temporaryFolder();

/** Environment of a process that leaves its peak in a file when it ends. */
function recorded(name: string): { env: NodeJS.ProcessEnv; peak: () => number } {
  const file = join(folder, `${name}.peak`);
  return {
    env: { ...process.env, NODE_OPTIONS: `--import ${RECORD_PEAK}`, PEAK_FILE: file },
    peak: () => (JSON.parse(readFileSync(file, 'utf8')) as ProcessCosts).peakRssBytes,
  };
}

function expectPromise(peak: number, planned: number): void {
  const megabytes = (bytes: number): number => Math.round(bytes / 1e6);
  expect(megabytes(peak)).toBeLessThanOrEqual(megabytes(planned));
  expect(megabytes(peak)).toBeGreaterThanOrEqual(megabytes(planned / 2));
}

async function model(shape: GeneratedModel): Promise<string> {
  const path = join(folder, `${Object.values(shape).filter(Number).join('-')}${shape.alter ? '-altered' : ''}`);
  if (!existsSync(path)) await generateCheckpoint(path, shape);
  return path;
}

/** Every option but a flag's value has the name of its flag. */
const flagsOf = (options: CompressOptions): string[] =>
  Object.entries(options).flatMap(([name, value]) => [
    `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`,
    String(value),
  ]);

async function compress(name: string, source: string, options: CompressOptions, flags: string[] = []): Promise<number> {
  const { env, peak } = recorded(name);
  const args = [CLI, 'compress', source, join(folder, name), ...flagsOf(options), ...flags];
  await promisify(execFile)(process.execPath, args, { env });
  return peak();
}

const WIDE = { layers: 2, experts: 128, rows: 64, cols: 4096 };
const FLAT = { layers: 1, experts: 64, rows: 16, cols: 8192 };
const BALANCED = { layers: 1, experts: 64, rows: 128, cols: 1024 };

/** Experts as Qwen3-VL-MoE is published: gate beside up, transposed. */
const TURNED: GeneratedModel = {
  ...{ layers: 2, experts: 64, rows: 256, cols: 2048 },
  alter: (tensors) => [
    ...tensors.filter(({ name }) => !name.includes('.experts.')),
    ...[0, 1].flatMap((layer) => [
      floatTensor(`model.layers.${layer}.mlp.experts.gate_up_proj`, 'BF16', 64, 2048, 512),
      floatTensor(`model.layers.${layer}.mlp.experts.down_proj`, 'BF16', 64, 256, 2048),
    ]),
  ],
};

const SHAPES: ReadonlyArray<readonly [string, GeneratedModel | undefined, CompressOptions]> = [
  ['the process and its threads', undefined, { bases: 8, steps: 20, threads: 2 }],
  ['groups as stored', WIDE, { method: 'svd', format: 'hf', rank: 2, threads: 1 }],
  ['groups and slices of fused tensors', TURNED, { method: 'svd', format: 'hf', rank: 2, threads: 1 }],
  ['decoded targets', WIDE, { bases: 2, rank: 8, steps: 2, threads: 1, batchExperts: 8 }],
  ["a solver's state", FLAT, { bases: 40, steps: 4, threads: 1, batchExperts: 4 }],
  [
    "a solver's state, in parts",
    { layers: 1, experts: 36, rows: 512, cols: 1792 },
    { bases: 24, steps: 1, threads: 2, projections: ['gate_proj', 'up_proj'], maxMemory: 1010 * 2 ** 20 },
  ],
  ['batches of two sizes', BALANCED, { bases: 2, steps: 2, threads: 1, batchExperts: 40 }],
];
const cost = thoroughBut('the process and its threads', "a solver's state");

for (const [name, shape, options] of SHAPES)
  test(`a run that holds most in ${name}`, { ...cost(name), timeout: PATIENCE_MS }, async () => {
    const source = shape ? await model(shape) : TINY_MODEL;
    const { memory } = await planCompression(await openCheckpoint(source), options);
    expectPromise(await compress(name, source, options), memory.expectedBytes);
  });

const WEIGHED = { bases: 2, rank: 8, steps: 2, threads: 1, batchExperts: 1, allocate: 'uniform' } as const;
/** Metrics of 64 experts of 32 × 1536 have 604 MB if they are full. */
const METRICS: ReadonlyArray<readonly [string, CompressOptions]> = [
  ['full covariances', { ...WEIGHED, projections: ['gate_proj'], metric: 'full' }],
  ['covariances of low rank', { ...WEIGHED, projections: ['gate_proj'], metric: 'low-rank', maxMemory: 2 ** 30 }],
  ['covariances for the last A', { ...WEIGHED, projections: ['gate_proj', 'up_proj'], metric: 'none' }],
];
const metricCost = thoroughBut('covariances of low rank');

for (const [name, options] of METRICS)
  test(`a run that holds most in ${name}`, { ...metricCost(name), timeout: PATIENCE_MS }, async () => {
    const shape = { layers: 1, experts: 64, rows: 32, cols: 1536 };
    const source = await model(shape);
    const record = join(folder, 'record');
    if (!existsSync(record)) await generateRecord(record, { model: source, ...shape, tokens: 4096 });
    const given = { ...options, calibration: record };
    const { facts } = await openRecord(record);
    const { memory } = await planCompression(await openCheckpoint(source), given, undefined, facts);
    expect(memory.terms.metric).toBeGreaterThan(0.25 * memory.expectedBytes);
    expectPromise(await compress(`metric ${name}`, source, given), memory.expectedBytes);
  });

test('a worker, and the run that it fits for', { timeout: PATIENCE_MS }, async () => {
  const source = await model(BALANCED);
  const options = { bases: 2, steps: 2, threads: 1 };
  const checkpoint = await openCheckpoint(source);
  const { groups, settings, engine, memory } = await planCompression(checkpoint, options);
  const [group] = groups as [GroupPlan];
  const { solver } = settings;
  const { writesParts } = engine;
  const fit = group.method.memory(group.problem, { ...memory, solver, writesParts });
  const reserved = workload('onnx-cpu', 1, [{ stored: sourceBytes(group), metric: 0, fit }]);

  const worker = recorded('worker');
  const service = await startService(['worker', '--threads', '1'], worker.env);
  const peak = await compress('for-a-worker', source, options, ['--workers', service.url]);
  await service.stop();

  expectPromise(worker.peak(), expectedPeak(memoryTerms(reserved)));
  const remote = await planCompression(checkpoint, options, { engine, threads: [1] });
  expectPromise(peak, remote.memory.expectedBytes);
});
