import { mkdirSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { shardOf } from '../../fixtures/fuzz/checkpoint-target.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { ReadError, UnreadableFileError } from '../errors.js';
import { LocalFiles } from '../sources/files.js';
import { openCheckpoint } from './open-checkpoint.js';
import { listSideFiles } from './side-files.js';

const root = temporaryFolder();
let made = 0;
const EMPTY = shardOf('{}', new Uint8Array(0));

function write(files: Record<string, string | Uint8Array>): string {
  const folder = join(root, String(made++));
  const model = { 'config.json': '{}', 'model.safetensors': EMPTY };
  for (const [name, content] of Object.entries({ ...model, ...files })) {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    writeFileSync(join(folder, name), content);
  }
  return folder;
}

async function sorted(folder: string) {
  const checkpoint = await openCheckpoint(folder);
  const copied = (await listSideFiles(checkpoint)).map(({ target }) => target);
  await checkpoint.files.close();
  return { copied, notes: checkpoint.notes };
}

const BINARY = Uint8Array.of(0, 1, 2, 255);

test.each([
  ...['tokenizer.json', 'tokenizer_config.json', 'tokenizer.model', 'vocab.txt', 'merges.txt', 'qwen.tiktoken'],
  ...['bpe_simple_vocab_16e6.txt.gz', 'generation_config.json', 'chat_template.jinja', 'preprocessor_config.json'],
  ...['modeling_x.py', 'sub/module.py', 'additional_chat_templates/tool.jinja', 'assets/pic.png', 'assets/talk.wav'],
])('%s is copied, whatever it holds', async (name) => {
  expect(await sorted(write({ [name]: BINARY }))).toEqual({ copied: [name], notes: [] });
});

test.each(['LICENSE', 'NOTICE', 'USE_POLICY', '.x/y', 'setup.sh', 'prompt.tmpl'])(
  '%s is copied where it is text',
  async (name) => {
    const hidden = name.startsWith('.');
    expect(await sorted(write({ [name]: 'text' }))).toEqual({ copied: hidden ? [] : [name], notes: [] });
    const note = `left out: 1 file that the model is not known to need (${name}).`;
    expect(await sorted(write({ [name]: BINARY }))).toEqual({ copied: [], notes: hidden ? [] : [note] });
  },
);

test.each([
  ...['pytorch_model.bin', 'pytorch_model-00001-of-00002.bin', 'consolidated.00.pth', 'model.ckpt', 'optimizer.pt'],
  ...[
    'x-Q4_K_M.gguf',
    'x.Q8_0.gguf.part1of2',
    'onnx/model.onnx',
    'onnx/model.onnx_data',
    'model.onnx_data_1',
    'model.onnx.data',
  ],
  ...['tf_model.h5', 'flax_model.msgpack', 'rust_model.ot', 'model.tflite', 'dist/__0_0.distcp', 'model.nemo', 'a.npz'],
  ...['model.tar', 'model.tar.gz', 'model.zip', 'w.pkl', 'x.mlmodel', 'old.safetensors.bak', 'a.safetensors.aria2'],
  ...['model.safetensors.index.fp16.json', 'pytorch_model.bin.index.json', 'training_args.bin', 'imatrix.dat'],
  ...['x.pdparams', 'original/params.json', 'metal/notes.txt', 'checkpoint-5/model.safetensors', 'adapter_config.json'],
])('%s is left out, even where it is text, and told', async (name) => {
  const { copied, notes } = await sorted(write({ [name]: 'text' }));
  expect(copied).toEqual([]);
  expect(notes).toEqual([`left out: 1 file of weights in other formats (${name}).`]);
});

test('what lies beside weights of another kind is left out with them; what lies beside shards of the model is not', async () => {
  const index = '{"weight_map": {"a": "w/1.safetensors"}}';
  const header = '{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}';
  const folder = write({
    ...{ 'vae/model.safetensors': EMPTY, 'vae/config.json': '{}', 'vae/deep/x.txt': '', 'vae/x.png': '' },
    ...{
      'model.safetensors.index.json': index,
      'w/1.safetensors': shardOf(header, new Uint8Array(0)),
      'w/words.txt': '',
    },
  });
  expect(await sorted(folder)).toMatchObject({
    copied: ['vae/x.png', 'w/words.txt'],
    notes: [
      'left aside: 1 safetensors file that is not part of the model (model.safetensors).',
      'left out: 3 files of weights in other formats (vae/config.json, vae/deep/x.txt, vae/model.safetensors).',
    ],
  });
});

test('one line names a few of many', async () => {
  const { notes } = await sorted(
    write(Object.fromEntries(Array.from({ length: 12 }, (_, i) => [`${10 + i}.gguf`, '']))),
  );
  expect(notes).toEqual(['left out: 12 files of weights in other formats (10.gguf, 11.gguf, 12.gguf, …).']);
});

test('what is larger than any such file is left out and told', async () => {
  const folder = write({ 'a.json': '', 'b.png': '', 'c.unknown': '' });
  for (const [name, bytes] of [
    ['a.json', 2 ** 29],
    ['b.png', 2 ** 25],
    ['c.unknown', 2 ** 21],
  ] as const)
    truncateSync(join(folder, name), bytes);
  expect(await sorted(folder)).toEqual({
    copied: [],
    notes: ['left out: 3 files that the model is not known to need (a.json, b.png, c.unknown).'],
  });
});

describe('a side file that is there by name only', () => {
  const POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n';
  test.each(['README.md', 'tokenizer.json', 'sub/x.txt'])('%s, a link to nothing: left out by name', async (name) => {
    const folder = write({ 'sub/y.txt': '' });
    symlinkSync('../blobs/none', join(folder, name));
    const { copied, notes } = await sorted(folder);
    expect(copied).toEqual(['sub/y.txt']);
    expect(notes).toEqual([
      `${name} is left out: it is a link to a file that is not there, as an interrupted download leaves it.`,
    ]);
  });

  test('a git-lfs pointer: left out by name, so that no tokenizer of three lines is in the result', async () => {
    const { copied, notes } = await sorted(write({ 'tokenizer.json': POINTER, 'tokenizer_config.json': '{}' }));
    expect(copied).toEqual(['tokenizer_config.json']);
    expect(notes).toEqual(['tokenizer.json is left out: it is a git-lfs pointer ("git lfs pull" fetches the file).']);
  });

  test('code that the config names: no result is made without it, but the model can be looked at', async () => {
    const config = '{"auto_map": {"AutoConfig": "configuration_x.XConfig"}}';
    const pointer = write({ 'config.json': config, 'configuration_x.py': POINTER });
    const linked = write({ 'config.json': config });
    symlinkSync('../blobs/none', join(linked, 'configuration_x.py'));
    for (const folder of [pointer, linked]) {
      const checkpoint = await openCheckpoint(folder);
      expect(checkpoint.notes.join()).toContain('configuration_x.py');
      await expect(listSideFiles(checkpoint)).rejects.toThrow(UnreadableFileError);
      await expect(listSideFiles(checkpoint)).rejects.toThrow('configuration_x.py');
      await checkpoint.files.close();
    }
  });

  test.each([
    ['EACCES', 'left out'],
    ['EIO', 'refused'],
  ])('a read that fails with %s: %s', async (code, what) => {
    const folder = write({ 'tokenizer.json': '{}' });
    const files = new LocalFiles();
    const read = files.readRange.bind(files);
    files.readRange = (range) =>
      range.file.endsWith('tokenizer.json') ? Promise.reject(new ReadError(range.file, 0, code, code)) : read(range);
    const run = openCheckpoint({ folder, files });
    if (what === 'refused') await expect(run).rejects.toThrow(ReadError);
    else expect((await run).notes).toEqual(['tokenizer.json is left out: it cannot be read (EACCES).']);
  });
});
