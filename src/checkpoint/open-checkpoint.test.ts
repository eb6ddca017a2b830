import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import * as errors from '../errors.js';
import { fingerprint, INDEX_FILE, openCheckpoint } from './open-checkpoint.js';

const root = temporaryFolder();
const model = join(root, 'model');
const shard = (number: number) => `model-0000${number}-of-00003.safetensors`;
const index = () => JSON.parse(readFileSync(join(model, INDEX_FILE), 'utf8'));
const writeIndex = (value: unknown) => writeFileSync(join(model, INDEX_FILE), JSON.stringify(value));

test('the trained fixture opens: config, shards, tensors', async () => {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  expect(checkpoint.config.model_type).toBe('qwen3_moe');
  expect(checkpoint.shards.map(({ tensors }) => tensors.length)).toEqual([138, 143, 142]);
  expect(checkpoint.tensors.get('model.norm.weight')).toMatchObject({ dtype: 'BF16', shape: [192] });
});

describe('a damaged folder is refused:', () => {
  beforeEach(() => {
    rmSync(model, { recursive: true, force: true });
    cpSync(TINY_MODEL, model, { recursive: true });
  });

  const cases: Array<
    [name: string, error: new (...args: never[]) => Error, names: string | RegExp, damage: () => void]
  > = [
    ['missing altogether', errors.NotACheckpointError, 'no such folder', () => rmSync(model, { recursive: true })],
    [
      'a file, not a folder',
      errors.NotACheckpointError,
      'is a file',
      () => {
        rmSync(model, { recursive: true });
        writeFileSync(model, '');
      },
    ],
    ['no config', errors.NotACheckpointError, 'config.json', () => rmSync(join(model, 'config.json'))],
    [
      'a config that is no JSON',
      errors.InvalidJsonError,
      'config.json',
      () => writeFileSync(join(model, 'config.json'), '{'),
    ],
    [
      'a config that is no object',
      errors.InvalidJsonError,
      'config.json',
      () => writeFileSync(join(model, 'config.json'), '[]'),
    ],
    ['a missing shard', errors.MissingShardError, shard(2), () => rmSync(join(model, shard(2)))],
    [
      'an index that is no JSON',
      errors.InvalidJsonError,
      INDEX_FILE,
      () => writeFileSync(join(model, INDEX_FILE), 'x'),
    ],
    ['an index without weight_map', errors.InvalidJsonError, 'weight_map', () => writeIndex({})],
    [
      'an index that places a tensor nowhere',
      errors.InvalidJsonError,
      'lm_head',
      () => writeIndex({ weight_map: { ...index().weight_map, 'lm_head.weight': null } }),
    ],
    [
      'an index with a line break in a name',
      errors.InvalidJsonError,
      'not JSON',
      () =>
        writeFileSync(join(model, INDEX_FILE), readFileSync(join(model, INDEX_FILE), 'utf8').replace('lm_', 'lm\n')),
    ],
    [
      'a shard name that leaves the folder',
      errors.UnsafePathError,
      '../secret',
      () => writeIndex({ weight_map: { a: '../secret.safetensors' } }),
    ],
    ['an absolute shard name', errors.UnsafePathError, '/etc', () => writeIndex({ weight_map: { a: '/etc/passwd' } })],
    ['a truncated shard', errors.TruncatedShardError, shard(3), () => truncateSync(join(model, shard(3)), 1_000_000)],
    [
      'a shard cut inside its header',
      errors.HeaderTooLongError,
      shard(3),
      () => truncateSync(join(model, shard(3)), 100),
    ],
    ['an empty shard', errors.InvalidHeaderError, shard(3), () => truncateSync(join(model, shard(3)), 0)],
  ];
  test.each(cases)('%s', async (_, error, names, damage) => {
    damage();
    await expect(openCheckpoint(model)).rejects.toThrow(error);
    await expect(openCheckpoint(model)).rejects.toThrow(names);
  });
});

test('shards that are symbolic links, as download caches have them, open', async () => {
  const linked = join(root, 'linked');
  mkdirSync(linked);
  for (const file of ['config.json', INDEX_FILE, shard(1), shard(2), shard(3)])
    symlinkSync(join(TINY_MODEL, file), join(linked, file));
  expect((await openCheckpoint(linked)).tensors.size).toBe(423);
});

test('the fingerprint tells apart what headers cannot', async () => {
  const shape = { layers: 1, experts: 2, rows: 4, cols: 8 };
  const marks = [];
  for (const seed of [1, 2, 1]) {
    const folder = join(root, `seed-${marks.length}`);
    await generateCheckpoint(folder, { ...shape, seed });
    marks.push(await fingerprint(await openCheckpoint(folder)));
  }
  expect(marks[0]).toBe(marks[2]);
  expect(marks[0]).not.toBe(marks[1]);
});
