import { createHash } from 'node:crypto';
import {
  appendFileSync,
  cpSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateFamily } from '../../fixtures/generate-family.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { REPORT_FILE } from '../../src/conversion/run-report.js';
import { MobeError } from '../../src/errors.js';
import { layoutFile } from '../../src/output/layout.js';
import { decodeManifest, MANIFEST_FILE } from '../../src/output/manifest.js';
import { OutputFolder } from '../../src/output/output-folder.js';
import { seal } from '../../src/output/seal.js';
import { READ_BYTES } from '../../src/sources/files.js';
import { hashOutput } from '../flow/hash-output.js';
import { compress } from './compress.js';
import { verify } from './verify.js';
import { verifyIntegrity } from './verify-manifest.js';

const root = temporaryFolder();
const at = (...path: string[]): string => join(root, ...path);
/** A result whose fused tensors have rebuilt slices, written long after the slices that are kept. */
const out = at('out');
const shards: string[] = [];

beforeAll(async () => {
  await generateFamily(at('model'), 'qwen3_moe', { sizes: { layers: 2 }, fused: true });
  writeFileSync(at('model', 'tokenizer.json'), '{"model": "…"}');
  writeFileSync(at('model', 'empty.txt'), '');
  writeFileSync(at('model', '__proto__'), 'a file may be called so');
  await compress(at('model'), out, {
    ...{ format: 'hf', projections: ['up_proj'], bases: 3, steps: 3, threads: 1 },
    shardSize: 20_000,
  });
  shards.push(...readdirSync(out).filter((file) => file.endsWith('.safetensors')));
});

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

test('what was written is found to be so, every file and tensor of it', async () => {
  const { problems, files, tensors, bytes, unlisted } = await verifyIntegrity(out);
  const names = readdirSync(out);
  const sizes = names.map((name) => statSync(join(out, name)).size);
  expect(problems).toEqual([]);
  expect(unlisted).toEqual([]);
  expect(files).toBe(names.length - 2); // all but the manifest and the record, which are sealed
  expect(tensors).toBe((await openCheckpoint(out)).tensors.size);
  const own = [MANIFEST_FILE, REPORT_FILE].map((file) => statSync(join(out, file)).size);
  expect(bytes).toBe(sizes.reduce((a, b) => a + b) - own.reduce((a, b) => a + b));
});

test('the hashes are those that any program computes', async () => {
  const manifest = decodeManifest(readFileSync(join(out, MANIFEST_FILE)), MANIFEST_FILE);
  for (const [file, parts] of manifest) {
    const bytes = readFileSync(join(out, file));
    for (const part of parts) expect(part.sha256).toBe(sha256(bytes.subarray(part.start, part.end)));
  }
  for (const { name, start, end } of (await openCheckpoint(out)).tensors.values()) {
    const parts = [...manifest.values()].flat().filter(({ tensor }) => tensor === name);
    expect(Math.min(...parts.map((part) => part.start))).toBe(start);
    expect(Math.max(...parts.map((part) => part.end))).toBe(end);
  }
});

/** The text that a problem must contain if a bit of this byte is flipped. */
async function regionOf(file: string, position: number): Promise<string> {
  if (file === MANIFEST_FILE || file === REPORT_FILE) return `${file}`;
  if (!file.endsWith('.safetensors')) return `${file} is damaged`;
  const { shards } = await openCheckpoint(at('whole'));
  const tensors = shards.find(({ path }) => path.endsWith(`/${file}`))?.tensors ?? [];
  const tensor = tensors.find(({ start, end }) => start <= position && position < end);
  return tensor ? `tensor "${tensor.name}" in ${file} is damaged` : `the header of ${file} is damaged`;
}

for (const [bits, cost] of [
  [60, {}],
  [400, THOROUGH],
] as const)
  test(`any of ${bits} single flipped bits in any file is found, and told where`, cost, async () => {
    cpSync(out, at('whole'), { recursive: true });
    const files = readdirSync(out).filter((file) => statSync(join(out, file)).size > 0);
    expect(files.length).toBeGreaterThan(8);
    const flip = async (file: string, position: number, bit: number): Promise<void> => {
      const original = readFileSync(join(out, file));
      const damaged = Buffer.from(original);
      damaged[position] = (damaged[position] as number) ^ (1 << bit);
      writeFileSync(join(out, file), damaged);
      const { problems } = await verifyIntegrity(out);
      writeFileSync(join(out, file), original);
      expect(problems, `bit ${bit} of byte ${position} of ${file}`).toHaveLength(1);
      expect(problems[0]).toContain(await regionOf(file, position));
      const [, start, end] = /bytes (\d+) to (\d+) of/.exec(problems[0] as string) ?? [];
      if (start !== undefined) expect(position >= Number(start) && position <= Number(end)).toBe(true);
    };
    for (const file of files) {
      await flip(file, 0, 0);
      await flip(file, statSync(join(out, file)).size - 1, 7);
    }
    const place = fc.record({
      file: fc.constantFrom(...files),
      share: fc.double({ min: 0, max: 0.999999, noNaN: true }),
    });
    await fc.assert(
      fc.asyncProperty(place, fc.nat(7), ({ file, share }, bit) =>
        flip(file, Math.floor(share * statSync(join(out, file)).size), bit),
      ),
      { numRuns: bits },
    );
    expect((await verifyIntegrity(out)).problems).toEqual([]);
  });

describe('also found:', () => {
  test.each<[string, (folder: string) => void, string]>([
    ['a file that is gone', (folder) => rmSync(join(folder, 'tokenizer.json')), 'tokenizer.json is missing'],
    ['an empty file that is gone', (folder) => rmSync(join(folder, 'empty.txt')), 'empty.txt is missing'],
    ['a byte too many', (folder) => appendFileSync(join(folder, 'config.json'), ' '), 'config.json has'],
    ['a truncated shard', (folder) => truncateSync(join(folder, shards[0] as string), 99), 'has 99 bytes'],
    ['a manifest that is gone', (folder) => rmSync(join(folder, MANIFEST_FILE)), `${MANIFEST_FILE} is missing`],
    ['a record that is gone', (folder) => rmSync(join(folder, REPORT_FILE)), `${REPORT_FILE} is missing`],
    ['an empty record', (folder) => truncateSync(join(folder, REPORT_FILE)), `${REPORT_FILE} is damaged`],
  ])('%s', async (what, harm, says) => {
    cpSync(out, at(what), { recursive: true });
    harm(at(what));
    const { problems } = await verifyIntegrity(at(what));
    expect(problems).toHaveLength(1);
    expect(problems[0]).toContain(says);
  });
});

test('files of others are told, and are no damage', async () => {
  cpSync(out, at('foreign'), { recursive: true });
  writeFileSync(at('foreign', 'notes.txt'), 'mine');
  const { problems, unlisted } = await verifyIntegrity(at('foreign'));
  expect({ problems, unlisted }).toEqual({ problems: [], unlisted: ['notes.txt'] });
});

test('a file that says how tensors are quantised is a problem, whoever added it', async () => {
  cpSync(out, at('claimed'), { recursive: true });
  writeFileSync(at('claimed', 'hf_quant_config.json'), '{"quantization":{"quant_algo":"FP8"}}');
  const { problems } = await verifyIntegrity(at('claimed'));
  expect(problems).toEqual([expect.stringContaining('hf_quant_config.json was added')]);
});

test('a folder without a manifest is refused', async () => {
  await expect(verifyIntegrity(at('model'))).rejects.toThrow('no mobe.manifest.json');
});

test('against the source, damage is found before anything is compared', async () => {
  cpSync(out, at('damaged'), { recursive: true });
  appendFileSync(at('damaged', 'config.json'), '}');
  const { problems, copiedTensors } = await verify(at('model'), at('damaged'), { threads: 1 });
  expect(problems).toHaveLength(1);
  expect(copiedTensors).toBe(0);
});

test('the same conversion writes the same manifest', async () => {
  const options = { format: 'mobe', bases: 3, steps: 3, threads: 1 } as const;
  await compress(at('model'), at('once'), options);
  await compress(at('model'), at('twice'), options);
  expect(readFileSync(at('twice', MANIFEST_FILE), 'utf8')).toBe(readFileSync(at('once', MANIFEST_FILE), 'utf8'));
});

test('the manifest of an earlier result is no side file of the next', async () => {
  await compress(out, at('again'), { format: 'hf', bases: 3, steps: 3, threads: 1 });
  expect((await verifyIntegrity(at('again'))).problems).toEqual([]);
});

test('large writes are hashed in parts, in whatever order they come', async () => {
  const bytes = READ_BYTES + 500;
  const layout = layoutFile('model.safetensors', [{ name: 't', dtype: 'U8', shape: [bytes], bytes }]);
  const output = hashOutput(await OutputFolder.create(at('large'), { neededBytes: bytes }));
  await output.reserve(layout);
  const data = new Uint8Array(bytes).map((_, i) => i * 7);
  await output.write('t', 100, data.subarray(100));
  await output.write('t', 0, data.subarray(0, 100));
  await output.commit([]);
  const parts = [...(output.written.get('model.safetensors') ?? [])].sort((a, b) => a.start - b.start);
  const file = readFileSync(at('large', 'model.safetensors'));
  const sizes = [layout.header.byteLength, 100, READ_BYTES, bytes - 100 - READ_BYTES];
  expect(parts.map(({ start, end }) => end - start)).toEqual(sizes);
  for (const { start, end, sha256: own } of parts) expect(own).toBe(sha256(file.subarray(start, end)));
});

describe('against the source, a record that claims', () => {
  test.each<[string, (record: { groups: object[]; settings: object }) => void]>([
    ['a layer', ({ groups }) => Object.assign(groups[0] as object, { layer: 77 })],
    ['a part', ({ groups }) => Object.assign(groups[0] as object, { group: 5 })],
    ['any number of parts', ({ groups }) => Object.assign(groups[0] as object, { groups: 2 ** 40 })],
    ['a dtype', ({ settings }) => Object.assign(settings, { dtype: 'F99' })],
  ])('%s that is not there is refused by name', async (what, change) => {
    cpSync(out, at(`claims ${what}`), { recursive: true });
    const file = at(`claims ${what}`, REPORT_FILE);
    const { sha256: _, ...record } = JSON.parse(readFileSync(file, 'utf8'));
    change(record);
    writeFileSync(file, seal(JSON.stringify(record)));
    await expect(verify(at('model'), at(`claims ${what}`), { threads: 1 })).rejects.toThrow(MobeError);
  });
});
