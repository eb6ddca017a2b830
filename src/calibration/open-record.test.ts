import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { encodeFloats } from '../checkpoint/codec.js';
import { DamagedRecordError, NotARecordError, OtherRecordError, RecordLayerError } from '../errors.js';
import { PARTIAL_FOLDER } from '../output/journal.js';
import type { ShardLayout } from '../output/layout.js';
import { tokensOfExperts } from './expert-tokens.js';
import { layerLayout, tokensLayout } from './layer-file.js';
import { checkLayers, openRecord } from './open-record.js';
import { layerFile, RECORD_FILE, TOKENS_FILE } from './record.js';

const root = temporaryFolder();
const at = (name: string) => join(root, name);
const GOOD = at('good');
/** Far more than one read of the inputs. */
const WIDTH = 40_000;
const TOKENS = 6;

const values = Float32Array.from({ length: TOKENS * WIDTH }, (_, i) => (i % 256) / 64 - 2);
const layer = {
  input: encodeFloats('BF16', values),
  experts: Int32Array.of(0, 2, 2, 1, 1, 0, 0, 1, 2, 0, 1, 2),
  weights: Float32Array.from({ length: 12 }, (_, i) => (i + 1) / 16),
  scale: Float32Array.from({ length: TOKENS }, (_, i) => 2 ** -i),
};
const facts = {
  version: 1 as const,
  sourceFingerprint: 'aa',
  sequences: 2,
  length: 3,
  seed: 0,
  texts: [{ name: 'a.txt', bytes: 6, sha256: '00' }],
  layers: [1],
};

function write(folder: string, { file, header }: ShardLayout, ...parts: readonly ArrayBufferView[]): void {
  const bytes = parts.map((it) => new Uint8Array(it.buffer, it.byteOffset, it.byteLength));
  writeFileSync(join(folder, file), Buffer.concat([header, ...bytes]));
}

function writeLayer(folder: string, own: Partial<typeof layer> = {}, tokens = TOKENS): void {
  const { input, experts, weights, scale } = { ...layer, ...own };
  const layout = layerLayout(1, { tokens, width: WIDTH, expertsPerToken: 2 });
  write(folder, layout, input, experts, weights, scale);
}

beforeAll(() => {
  mkdirSync(GOOD);
  writeFileSync(join(GOOD, RECORD_FILE), JSON.stringify(facts));
  write(GOOD, tokensLayout(2, 3), Int32Array.of(5, 6, 7, 8, 9, 10));
  writeLayer(GOOD);
});

test('gives back what was recorded', async () => {
  const record = await openRecord(GOOD, { sourceFingerprint: 'aa' });
  expect(record.facts).toEqual(facts);
  expect(await record.tokens()).toEqual(Int32Array.of(5, 6, 7, 8, 9, 10));
  const { experts, weights, scale } = layer;
  const opened = await record.layer(1);
  expect(opened).toMatchObject({ layer: 1, tokens: TOKENS, width: WIDTH, expertsPerToken: 2, experts, weights, scale });
  for (const wanted of [[0, 1, 2, 3, 4, 5], [0, 3, 5], [4], []]) {
    const rows = new Float32Array(wanted.length * WIDTH);
    await opened.readInputs(wanted, rows);
    for (const [i, token] of wanted.entries())
      expect(rows.subarray(i * WIDTH, (i + 1) * WIDTH)).toEqual(values.subarray(token * WIDTH, (token + 1) * WIDTH));
  }
  expect(tokensOfExperts(opened, 3)).toMatchObject([
    { tokens: Int32Array.of(0, 2, 3, 4), weights: Float32Array.of(1, 6, 7, 10).map((it) => it / 16) },
    { tokens: Int32Array.of(1, 2, 3, 5) },
    { tokens: Int32Array.of(0, 1, 4, 5) },
  ]);
  expect(() => tokensOfExperts(opened, 2)).toThrow('expert 2, and the layer has 2');
  await record.release(1);
  await expect(record.layer(0)).rejects.toThrow(RecordLayerError);
  await record.close();
});

test('of another model is refused', async () => {
  await expect(openRecord(GOOD, { sourceFingerprint: 'bb' })).rejects.toThrow(OtherRecordError);
});

test('missing layers and damaged headers are found without reading the layers', async () => {
  await checkLayers(GOOD, facts, [1, 1]);
  await expect(checkLayers(GOOD, facts, [1, 2])).rejects.toThrow(RecordLayerError);
  cpSync(GOOD, at('headers'), { recursive: true });
  await expect(checkLayers(at('headers'), { ...facts, length: 4 }, [1])).rejects.toThrow(/expected is/);
  rmSync(join(at('headers'), layerFile(1)));
  await expect(checkLayers(at('headers'), facts, [1])).rejects.toThrow(/is missing/);
});

describe('no record:', () => {
  test.each<[string, string, (folder: string) => void, string]>([
    ['no folder', '', () => {}, 'no such folder'],
    ['a file', '', (folder) => writeFileSync(folder, ''), 'is a file'],
    ['an empty folder', '', (folder) => mkdirSync(folder), 'has no calibration.json'],
    ['a checkpoint', RECORD_FILE, (folder) => writeFileSync(join(folder, 'config.json'), '{}'), 'is a checkpoint'],
    ['an unfinished one', RECORD_FILE, (folder) => mkdirSync(join(folder, PARTIAL_FOLDER)), 'not finished'],
  ])('%s', async (name, without, make, words) => {
    cpSync(GOOD, at(name), { recursive: true });
    rmSync(join(at(name), without), { recursive: true });
    make(at(name));
    const error = await openRecord(at(name)).catch((it) => it);
    expect(error).toBeInstanceOf(NotARecordError);
    expect(error.message).toContain(words);
  });
});

describe('damage is found:', () => {
  const file = (folder: string, name: string) => join(folder, name);
  const cut = (path: string) => writeFileSync(path, readFileSync(path).subarray(0, -4));
  const infinite = layer.input.slice();
  infinite.set([0x80, 0x7f], 2 * (WIDTH + 3));
  test.each<[string, (folder: string) => void, string]>([
    ['facts that are no JSON', (it) => writeFileSync(file(it, RECORD_FILE), '{'), 'JSON'],
    ['facts without an entry', (it) => writeFileSync(file(it, RECORD_FILE), '{"version":1}'), 'sourceFingerprint'],
    [
      'facts of a later version',
      (it) => writeFileSync(file(it, RECORD_FILE), JSON.stringify({ ...facts, version: 2 })),
      'version',
    ],
    ['no file of a layer', (it) => rmSync(file(it, layerFile(1))), 'missing'],
    ['no tokens', (it) => rmSync(file(it, TOKENS_FILE)), 'missing'],
    ['a layer that is cut off', (it) => cut(file(it, layerFile(1))), 'header is damaged'],
    ['an empty layer', (it) => writeFileSync(file(it, layerFile(1)), ''), 'header is damaged'],
    ['tokens that are cut off', (it) => cut(file(it, TOKENS_FILE)), 'header is damaged'],
    [
      'a layer with the tensors of another file',
      (it) => cpSync(file(it, TOKENS_FILE), file(it, layerFile(1))),
      'no tensor "input"',
    ],
    [
      'other sizes than the facts say',
      (it) => writeFileSync(file(it, RECORD_FILE), JSON.stringify({ ...facts, sequences: 3 })),
      'expected is',
    ],
    ['an expert below 0', (it) => writeLayer(it, { experts: layer.experts.with(3, -1) }), 'token 1'],
    ['an expert twice', (it) => writeLayer(it, { experts: layer.experts.with(10, 2) }), 'token 5'],
    ['a weight that is not finite', (it) => writeLayer(it, { weights: layer.weights.with(2, Number.NaN) }), 'weight'],
    ['a scale of 0', (it) => writeLayer(it, { scale: layer.scale.with(2, 0) }), 'scale'],
    ['an infinite scale', (it) => writeLayer(it, { scale: layer.scale.with(2, Number.POSITIVE_INFINITY) }), 'scale'],
    ['an infinite input', (it) => writeLayer(it, { input: infinite }), 'token 1'],
  ])('%s', async (name, damage, words) => {
    cpSync(GOOD, at(name), { recursive: true });
    damage(at(name));
    const read = async (): Promise<void> => {
      const record = await openRecord(at(name));
      try {
        await record.tokens();
        await (await record.layer(1)).readInputs([0, 1], new Float32Array(2 * WIDTH));
      } finally {
        await record.close();
      }
    };
    const error = await read().catch((it) => it);
    expect(error).toBeInstanceOf(DamagedRecordError);
    expect(error.message).toContain(words);
    expect(error.message).toContain(at(name));
  });
});
