import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateFamily } from '../../fixtures/generate-family.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { type Checkpoint, openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { decodeMatrix, type MatrixFormat } from '../../src/checkpoint/stored-matrix.js';
import { type GroupPlan, planGroups, sourceBytes } from '../../src/conversion/group-plan.js';
import { resolveSettings } from '../../src/conversion/settings.js';
import { detectModel } from '../../src/models/detect.js';
import { ByteBudget } from '../flow/byte-budget.js';
import { groupExperts } from './group-experts.js';
import { normalise, normaliseForFit } from './normalise.js';
import { readExperts } from './read-experts.js';

const root = temporaryFolder();
let source: Checkpoint;
let reads: string[] = [];
beforeAll(async () => {
  const folder = join(root, 'model');
  await generateFamily(folder, 'qwen3_moe', { sizes: { layers: 2 } });
  source = await openCheckpoint(folder);
});

const planned = (groups: number): GroupPlan[] =>
  planGroups(detectModel(source), resolveSettings({ format: 'hf', bases: 4, groups }));

/** σ by group, as the stage gives it; the budget has room for one layer's parts of one projection, and no more. */
async function sigmas(groups: number, holdParts: boolean, coming?: (group: GroupPlan) => boolean) {
  const all = planned(groups);
  const wanted = coming ? all.filter(coming) : all;
  const reader = {
    ...source.files,
    read: (file: string, position: number, target: Uint8Array) => {
      reads.push(`${file} ${position}`);
      return source.files.read(file, position, target);
    },
    readRange: source.files.readRange.bind(source.files),
  };
  reads = [];
  const budget = new ByteBudget(groups * Math.max(...all.map(sourceBytes)));
  const options = { groups: all, coming: new Set(wanted), reader, holdParts, writesWeights: false };
  const found = new Map<string, number | undefined>();
  for await (const { group, sigma, release } of normalise(groupExperts(readExperts(wanted, reader, budget)), options)) {
    found.set(`${group.layer} ${group.projection} ${group.group}`, sigma);
    release();
  }
  return found;
}

const formatsOf = ({ format, experts }: GroupPlan): MatrixFormat[] =>
  experts.map(({ encoding }) => ({ ...format, encoding }));

/** σ of a layer and projection, in f64 from the decoded weights. */
async function expected(layer: number, projection: string): Promise<number> {
  const group = planned(1).find((it) => it.layer === layer && it.projection === projection) as GroupPlan;
  const values: number[] = [];
  for (const { data, rows, cols, encoding } of group.experts) {
    const weights = new Float32Array(rows * cols);
    decodeMatrix({ ...group.format, encoding }, await source.files.readRange(data), weights);
    values.push(...weights);
  }
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return Math.sqrt(values.reduce((sum, w) => sum + (w - mean) ** 2, 0) / (values.length - 1));
}

describe('normalise', () => {
  test('leaves σ of whole layers to the job, which reads nothing twice', async () => {
    const found = await sigmas(1, true);
    expect([...found.values()]).toEqual([undefined, undefined, undefined, undefined]);
    expect(new Set(reads).size).toBe(reads.length);
  });

  test('gives all parts of a layer and projection the σ of all its experts, held or read twice', async () => {
    const held = await sigmas(4, true);
    expect(held.size).toBe(16);
    expect(new Set(reads).size).toBe(reads.length);
    const readTwice = await sigmas(4, false);
    expect(readTwice).toEqual(held);
    expect(reads.length).toBe(2 * new Set(reads).size);
    for (const [key, sigma] of held) {
      const [layer, projection] = key.split(' ') as [string, string];
      expect(sigma).toBeCloseTo(await expected(Number(layer), projection), 10);
      expect(sigma).toBe(held.get(`${layer} ${projection} 0`));
    }
  });

  test('counts the parts that an interrupted run has finished', async () => {
    const whole = await sigmas(2, true);
    const rest = await sigmas(2, true, ({ group }) => group === 1);
    expect([...rest]).toEqual([...whole].filter(([key]) => key.endsWith(' 1')));
  });

  test('the job’s own σ is the same number', async () => {
    const [group] = planned(1) as [GroupPlan];
    const experts = [];
    for (const { data } of group.experts) experts.push(await source.files.readRange(data));
    const labels = group.experts.map(({ name, data }) => ({ name, file: data.file }));
    const weights = {
      formats: formatsOf(group),
      experts,
      labels,
      sigma: undefined,
      writtenDtype: undefined,
      label: 'group',
    };
    for (const hold of [true, false]) {
      const { sigma } = normaliseForFit(weights, hold);
      expect(sigma).toBe((await sigmas(2, true)).get(`${group.layer} ${group.projection} 0`));
    }
  });

  test('a group’s weights come divided by σ, decoded once while they are kept', () => {
    const [group] = planned(1) as [GroupPlan];
    const { rows, cols } = group.format;
    const experts = group.experts.map((_, e) => new Uint8Array(new Uint16Array(rows * cols).fill(0x3f80 + e).buffer));
    const labels = group.experts.map(({ name }) => ({ name, file: 'f' }));
    const weights = { formats: formatsOf(group), experts, labels, sigma: 2, writtenDtype: undefined, label: 'group' };
    const targets = normaliseForFit(weights, true);
    for (const bytes of experts) bytes.fill(0); // what is kept does not change with its source
    const target = new Float32Array(rows * cols);
    targets.read(0, target);
    expect(target[0]).toBe(0.5);
    targets.forget?.(0);
    targets.read(0, target);
    expect(target[0]).toBe(0);
  });
});
