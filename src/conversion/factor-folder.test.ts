/** A folder of factor files, driven as any output is. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import * as errors from '../errors.js';
import { detectModel } from '../models/detect.js';
import { PARTIAL_FOLDER } from '../output/journal.js';
import type { Unit } from '../output/unfinished-run.js';
import {
  type FactorContext,
  factorFileName,
  factorLayout,
  factorTensorName,
  openFactorFolder,
} from './factor-files.js';
import { FactorFolder } from './factor-folder.js';
import { type GroupPlan, groupLabel, planGroups } from './group-plan.js';
import type { FittedGroupReport } from './run-report.js';
import { resolveSettings } from './settings.js';

const factorUnit = (group: GroupPlan): Unit => ({
  id: groupLabel(group),
  parts: factorLayout(group).tensors.map(({ name, bytes }) => ({ tensor: name, offset: 0, bytes })),
  noted: true,
});

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
let groups: GroupPlan[];
let context: FactorContext;

const contextOf = (layers: readonly number[], seed = 0): FactorContext => ({
  sourceFingerprint: 'source',
  settings: { bases: 4, layers, seed },
});

const groupsOf = async (layers: number[], bases = 4): Promise<GroupPlan[]> =>
  planGroups(
    detectModel(await openCheckpoint(TINY_MODEL)),
    resolveSettings({ format: 'hf', bases, rank: 8, layers, projections: ['gate_proj', 'up_proj'] }),
  );

beforeAll(async () => {
  groups = await groupsOf([0]);
  context = contextOf([0]);
});

const reportOf = ({ layer, projection, group, groups: parts }: GroupPlan): FittedGroupReport => ({
  ...{ layer, projection, group, groups: parts },
  ...{ relativeError: 0.25, mse: 1e-4, sigma: 0.02, steps: 7, seconds: 3 },
});

/** Bytes that tell where they belong. */
const dataOf = (bytes: number, start: number): Uint8Array => Uint8Array.from({ length: bytes }, (_, i) => start + i);

/** Writes a group in pieces, the last first, and finishes it. */
async function fill(output: FactorFolder, group: GroupPlan, upTo = 0): Promise<void> {
  await output.reserve(factorLayout(group));
  const finished = upTo === 0 ? output.finish(factorUnit(group), reportOf(group)) : undefined;
  for (const { name, bytes } of factorLayout(group).tensors) {
    const half = bytes >> 1;
    await output.write(name, half, dataOf(bytes - half, half));
    if (upTo === 0) await output.write(name, 0, dataOf(half, 0));
  }
  await finished;
}

async function filled(name: string, layers: number[], seed = 0): Promise<string> {
  const wanted = await groupsOf(layers);
  const output = await FactorFolder.create(at(name), { groups: wanted, context: contextOf(layers, seed) });
  const found = await output.resume([], wanted.map(factorUnit));
  for (const group of wanted) if (!found.has(factorUnit(group).id)) await fill(output, group);
  await output.writeText('mobe.json', `{"layers": [${layers}]}`);
  await output.commit();
  return at(name);
}

test('a file gets its name with its unit, the record with the commit; then nothing else is there', async () => {
  const output = await FactorFolder.create(at('life'), { groups, context });
  const [first, second] = groups as [GroupPlan, GroupPlan];
  await output.writeText('mobe.json', '{}');
  await fill(output, first);
  expect(readdirSync(at('life')).sort()).toEqual([PARTIAL_FOLDER, factorFileName(first)]);
  await fill(output, second);
  await output.commit();
  expect(readdirSync(at('life')).sort()).toEqual([factorFileName(first), factorFileName(second), 'mobe.json']);
  const [file] = await openFactorFolder(at('life'));
  const { seconds: _, ...report } = reportOf(first);
  expect(file?.metadata).toEqual({ version: 1, activation: 'silu', ...context, report });
  expect(file?.problem).toEqual(first.problem);
  const { A } = file?.tensors ?? {};
  const bytes = readFileSync(at('life', factorFileName(first))).subarray(A?.start, A?.end);
  expect(Buffer.compare(bytes, dataOf(bytes.length, 0))).toBe(0);
});

test('tensors of two files that are filled at once do not get into each other', async () => {
  const output = await FactorFolder.create(at('at-once'), { groups, context });
  await Promise.all(groups.map((group) => fill(output, group)));
  await output.commit();
  for (const group of groups)
    expect(readFileSync(at('at-once', factorFileName(group))).subarray(-64)).toEqual(
      readFileSync(at('life', factorFileName(group))).subarray(-64),
    );
});

describe('given up,', () => {
  const half = async (name: string): Promise<FactorFolder> => {
    const output = await FactorFolder.create(at(name), { groups, context });
    await fill(output, groups[0] as GroupPlan);
    await fill(output, groups[1] as GroupPlan, 0.5);
    return output;
  };

  test('it keeps what is finished, and gives it back to the same run', async () => {
    expect(await (await half('kept')).abandon(true)).toBe(true);
    expect(readdirSync(at('kept'))).toEqual([factorFileName(groups[0] as GroupPlan)]);
    const output = await FactorFolder.create(at('kept'), { groups, context });
    expect([...(await output.resume([], groups.map(factorUnit)))]).toEqual([
      [factorUnit(groups[0] as GroupPlan).id, { ...reportOf(groups[0] as GroupPlan), seconds: 0 }],
    ]);
    for (const group of groups) await output.reserve(factorLayout(group));
    await fill(output, groups[1] as GroupPlan);
    await output.commit();
    expect(await openFactorFolder(at('kept'))).toHaveLength(2);
  });

  test('it removes what this run has finished where that is not to be trusted, but nothing of an earlier one', async () => {
    expect(await (await half('removed')).abandon(false)).toBe(false);
    expect(existsSync(at('removed'))).toBe(false);
    await (await half('earlier')).abandon(true);
    const output = await FactorFolder.create(at('earlier'), { groups, context });
    await fill(output, groups[1] as GroupPlan);
    await output.abandon(false);
    expect(readdirSync(at('earlier'))).toEqual([factorFileName(groups[0] as GroupPlan)]);
  });

  test('it creates nothing any more', async () => {
    const output = await half('late');
    await output.abandon(false);
    const A = factorTensorName(groups[1] as GroupPlan, 'A');
    await expect(output.write(A, 0, Uint8Array.of(1))).rejects.toThrow(errors.InterruptedError);
    expect(existsSync(at('late'))).toBe(false);
  });
});

test('a group that is reserved and not finished stops the commit', async () => {
  const output = await FactorFolder.create(at('incomplete'), { groups, context });
  await fill(output, groups[0] as GroupPlan, 0.5);
  await expect(output.commit()).rejects.toThrow(errors.IncompleteOutputError);
  await output.abandon();
});

test('what no room is reserved for, or no group has, is refused', async () => {
  const output = await FactorFolder.create(at('unreserved'), { groups, context });
  const A = factorTensorName(groups[0] as GroupPlan, 'A');
  await expect(output.write(A, 0, Uint8Array.of(1))).rejects.toThrow(errors.WriteError);
  await expect(output.reserve({ ...factorLayout(groups[0] as GroupPlan), file: 'other' })).rejects.toThrow('other');
  await expect(output.writeText('../mobe.json', '')).rejects.toThrow(errors.UnsafePathError);
  await output.abandon();
});

test('one process writes at a time', async () => {
  const output = await FactorFolder.create(at('locked'), { groups, context });
  await expect(FactorFolder.create(at('locked'), { groups, context })).rejects.toThrow(errors.FolderLockedError);
  await output.abandon();
});

describe('a folder that holds something:', () => {
  test('other layers of the same fit are left alone, also when layers are done again', async () => {
    const folder = await filled('layers', [0]);
    const first = readFileSync(join(folder, 'layer-000.gate_proj.safetensors'));
    await filled('layers', [0, 1]);
    await filled('layers', [2]);
    expect(await openFactorFolder(folder)).toHaveLength(6);
    expect(readFileSync(join(folder, 'layer-000.gate_proj.safetensors')).equals(first)).toBe(true);
    const wanted = await groupsOf([1]);
    const output = await FactorFolder.create(folder, { groups: wanted, context: contextOf([1]), force: true });
    expect((await output.resume([], wanted.map(factorUnit))).size).toBe(0);
    await output.abandon();
    expect(await openFactorFolder(folder)).toHaveLength(4);
  });

  test.each([
    ['another seed', [0], 9, 4],
    ['another seed, other layers', [1], 9, 4],
    ['other shapes', [0], 0, 2],
  ])('%s is refused', async (name, layers, seed, bases) => {
    await filled(name, [0]);
    const options = { groups: await groupsOf(layers, bases), context: contextOf(layers, seed) };
    await expect(FactorFolder.create(at(name), options)).rejects.toThrow(errors.OutputNotEmptyError);
    await expect(FactorFolder.create(at(name), options)).rejects.toThrow('layer-000.gate_proj.safetensors');
    expect(readdirSync(at(name))).toHaveLength(3);
  });

  test('foreign files are refused, even when forced, and untouched', async () => {
    mkdirSync(at('foreign'));
    writeFileSync(at('foreign', 'mine.txt'), 'mine');
    for (const force of [false, true])
      await expect(FactorFolder.create(at('foreign'), { groups, context, force })).rejects.toThrow('mine.txt');
    expect(readdirSync(at('foreign'))).toEqual(['mine.txt']);
  });

  test('what a run that was killed has left of a file is removed', async () => {
    const folder = await filled('killed', [0]);
    writeFileSync(join(folder, 'layer-003.up_proj.safetensors.partial'), 'half');
    await filled('killed', [0]);
    expect(readdirSync(folder).some((name) => name.endsWith('.partial'))).toBe(false);
  });
});
