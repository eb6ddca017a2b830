/** Converts and verifies untidy folders. The results equal that of the tidy folder. */
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import { type FamilyOptions, generateFamily } from '../../fixtures/generate-family.js';
import type { StoredTensor } from '../../fixtures/quantised-storage.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { compress } from '../../streams/operations/compress.js';
import { verify } from '../../streams/operations/verify.js';
import { inspectCheckpoint } from '../conversion/inspection.js';
import { encodeHeader } from './header.js';
import { INDEX_FILE, openCheckpoint } from './open-checkpoint.js';

const root = temporaryFolder();
const OPTIONS = { bases: 2, steps: 2, threads: 1, format: 'hf' } as const;
const SIZES = { layers: 2, experts: 8, rows: 16, cols: 40 };
const FIRST = 'model-00001-of-00004.safetensors';

async function convert(name: string, damage: (folder: string) => void, options: FamilyOptions = {}) {
  const [folder, out] = [join(root, name), join(root, `${name} out`)];
  await generateFamily(folder, 'qwen3_moe', { sizes: SIZES, ...options });
  damage(folder);
  await compress(folder, out, OPTIONS, LARGER);
  expect((await verify(folder, out, { threads: 1 })).problems).toEqual([]);
  return { folder, out, notes: inspectCheckpoint(await openCheckpoint(folder)).notes };
}

const edit = (file: string, change: (text: string) => string): void =>
  writeFileSync(file, change(readFileSync(file, 'utf8')));

const shardOf = (tensors: readonly StoredTensor[]): Buffer =>
  Buffer.concat([
    encodeHeader(tensors.map(({ bytes, ...it }) => ({ ...it, bytes: bytes.byteLength }))),
    ...tensors.map(({ bytes }) => bytes),
  ]);

describe('the same weights come of', () => {
  test.each<[string, (folder: string) => void, string]>([
    [
      'a module beside the model',
      (it) => writeFileSync(join(it, 'mtp.safetensors'), readFileSync(join(it, FIRST))),
      'mtp.safetensors',
    ],
    ['no index', (it) => rmSync(join(it, INDEX_FILE)), 'the headers of 4 shards'],
    [
      'an index that omits tensors',
      (it) => edit(join(it, INDEX_FILE), (text) => text.replace(/\n.*"model\.embed_tokens\.weight".*/, '')),
      'model.embed_tokens.weight',
    ],
    [
      'shards in a subfolder',
      (it) => {
        mkdirSync(join(it, 'weights'));
        renameSync(join(it, FIRST), join(it, 'weights', FIRST));
        edit(join(it, INDEX_FILE), (text) => text.replaceAll(`"${FIRST}"`, `"weights/${FIRST}"`));
      },
      '',
    ],
    [
      'a single file, and an index of shards that are gone',
      (it) => {
        const tensors = [...readFolder(it).values()];
        for (const file of new Set(tensors.map(({ file }) => file))) rmSync(join(it, file));
        writeFileSync(join(it, 'model.safetensors'), shardOf(tensors));
      },
      'index.json is left aside: 4 shards that it names are not there',
    ],
    [
      'a side file that is a link to nothing',
      (it) => symlinkSync('../blobs/none', join(it, 'tokenizer.json')),
      'tokenizer.json is left out',
    ],
    [
      'copies in other formats',
      (it) => {
        mkdirSync(join(it, 'original'));
        for (const name of ['original/consolidated.safetensors', 'x.gguf']) appendFileSync(join(it, name), 'weights');
      },
      '2 files of weights in other formats',
    ],
  ])('%s', async (name, damage, note) => {
    const tidy = existsSync(join(root, 'tidy out')) ? join(root, 'tidy out') : (await convert('tidy', () => {})).out;
    const { out, notes } = await convert(name, damage);
    expect(notes.join('\n')).toContain(note);
    expect(notes).toHaveLength(note ? 1 : 0);
    const [expected, written] = [readFolder(tidy), readFolder(out)];
    expect(new Set(written.keys())).toEqual(new Set(expected.keys()));
    for (const [tensor, { bytes }] of expected) expect(written.get(tensor)?.bytes, tensor).toEqual(bytes);
    for (const left of ['mtp.safetensors', 'tokenizer.json', 'original', 'x.gguf'])
      expect(existsSync(join(out, left))).toBe(false);
  });
});

test("Python's constants, duplicate keys and byte order mark are in the result as they were", async () => {
  const text = (config: string): string =>
    `\ufeff${config.replace('{', '{\n  "limit": [0.0, Infinity],\n  "limit": [NaN, -Infinity],')}`;
  const { folder, out } = await convert('constants', (it) => {
    edit(join(it, 'config.json'), text);
    writeFileSync(join(it, 'generation_config.json'), '{"p": NaN}');
  });
  for (const file of ['config.json', 'generation_config.json'])
    expect(readFileSync(join(out, file)), file).toEqual(readFileSync(join(folder, file)));
});

test('an entry on quantisation deep in the config does not outlive the quantised weights', async () => {
  const quantization_config = { quant_method: 'fp8', weight_block_size: [128, 128] };
  const config = { thinker_config: { text_config: { quantization_config }, audio_config: { a: 1 } } };
  const { out } = await convert('thinker', () => {}, { quantised: 'fp8', block: [128, 128], config });
  expect(readFileSync(join(out, 'config.json'), 'utf8')).not.toContain('quantization_config');
  expect(JSON.parse(readFileSync(join(out, 'config.json'), 'utf8')).thinker_config).toEqual({
    text_config: {},
    audio_config: { a: 1 },
  });
});

describe("ModelOpt's hf_quant_config.json", () => {
  const entry = { quant_method: 'modelopt', quant_algo: 'FP8', ignore: ['lm_head'] };
  const modelopt: FamilyOptions = { quantised: 'fp8-tensor', config: { quantization_config: entry } };
  const file =
    '{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}';
  const write = (it: string): void => writeFileSync(join(it, 'hf_quant_config.json'), file);

  test('is left out of a result in bf16, and verify fails where it comes back', async () => {
    const { folder, out } = await convert('modelopt', write, modelopt);
    expect(existsSync(join(out, 'hf_quant_config.json'))).toBe(false);
    expect(readFileSync(join(out, 'config.json'), 'utf8')).not.toContain('modelopt');
    write(out);
    expect((await verify(folder, out, { threads: 1 })).problems).toEqual([
      'hf_quant_config.json should not be there',
      'hf_quant_config.json is there, but no tensor is quantised',
    ]);
  });

  test('stays as it is where converted experts are quantised again', async () => {
    const [folder, out] = [join(root, 'kept'), join(root, 'kept out')];
    await generateFamily(folder, 'qwen3_moe', { sizes: SIZES, ...modelopt });
    write(folder);
    await compress(folder, out, { ...OPTIONS, layers: [1], keepQuantized: true });
    for (const name of ['hf_quant_config.json', 'config.json'])
      expect(JSON.parse(readFileSync(join(out, name), 'utf8'))).toEqual(
        JSON.parse(readFileSync(join(folder, name), 'utf8')),
      );
    expect((await verify(folder, out, { threads: 1 })).problems).toEqual([]);
  });
});

test('layers with different numbers of experts are converted each by its own', async () => {
  const pruned = (name: string) => /layers\.1\.mlp\.experts\.7\./.test(name);
  const { folder, out, notes } = await convert('pruned', () => {}, {
    config: { num_experts_per_layer: [8, 7] },
    alter: (tensors) => tensors.filter(({ name }) => !pruned(name)),
  });
  expect(notes).toEqual(['config.json says "num_experts": 8, layer 1 has 7 experts: the tensors count.']);
  expect(inspectCheckpoint(await openCheckpoint(folder))).toMatchObject({ expertCounts: [8, 7], expertsPerLayer: 8 });
  expect(new Set(readFolder(out).keys())).toEqual(new Set(readFolder(folder).keys()));
  await expect(compress(folder, join(root, 'native'), { ...OPTIONS, format: 'mobe' })).rejects.toThrow(
    'Use --format hf',
  );
});

test('experts of a latent space, narrower than hidden_size, are converted', async () => {
  const latent = 24;
  const narrow = ({ name, shape, bytes, dtype }: StoredTensor): StoredTensor => {
    const [rows = 0, cols = 0] = shape;
    if (!name.includes('.experts.')) return { name, shape, bytes, dtype };
    if (cols === SIZES.rows) return { name, dtype, shape: [latent, cols], bytes: bytes.subarray(0, 2 * latent * cols) };
    const part = (row: number) => bytes.subarray(2 * row * cols, 2 * (row * cols + latent));
    return {
      name,
      dtype,
      shape: [rows, latent],
      bytes: Buffer.concat(Array.from({ length: rows }, (_, i) => part(i))),
    };
  };
  const { folder, out } = await convert('latent', () => {}, { alter: (tensors) => tensors.map(narrow) });
  const [source, written] = [readFolder(folder), readFolder(out)];
  expect(inspectCheckpoint(await openCheckpoint(folder)).expertShape).toEqual([SIZES.rows, latent]);
  expect([...written.keys()].sort()).toEqual([...source.keys()].sort());
  for (const [name, { shape, bytes }] of source) {
    expect(written.get(name)?.shape, name).toEqual(shape);
    const converted = /experts\.\d+\.(gate|up)_proj/.test(name);
    expect(Buffer.compare(bytes, written.get(name)?.bytes ?? Buffer.alloc(0)) !== 0, name).toBe(converted);
  }
});
