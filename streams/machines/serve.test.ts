import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { generateFamily } from '../../fixtures/generate-family.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { compress } from '../operations/compress.js';
import { inspect } from '../operations/inspect.js';
import { openSource } from './remote-files.js';
import { serve } from './serve.js';

test('a served folder has the same notes as a local one, and so has its result', async () => {
  const root = temporaryFolder();
  const model = join(root, 'model');
  await generateFamily(model, 'qwen3_moe', { sizes: { layers: 1 }, config: { num_experts: 99 } });
  symlinkSync('../blobs/none', join(model, 'tokenizer.json'));
  mkdirSync(join(model, 'templates'));
  symlinkSync('../../blobs/none', join(model, 'templates', 'chat.jinja'));
  writeFileSync(join(model, 'model.gguf'), 'weights');
  const { notes } = await openCheckpoint(model);
  expect(notes).toEqual([
    'templates/chat.jinja is left out: it is a link to a file that is not there, as an interrupted download leaves it.',
    'tokenizer.json is left out: it is a link to a file that is not there, as an interrupted download leaves it.',
    'left out: 1 file of weights in other formats (model.gguf).',
  ]);
  const server = await serve(model, { host: '127.0.0.1', port: 0 });
  try {
    expect((await openSource(server.url)).notes).toEqual(notes);
    const all = (await inspect(model)).notes;
    expect(all).toHaveLength(notes.length + 1);
    const result = await compress(server.url, join(root, 'out'), { format: 'hf', bases: 1, steps: 1, threads: 1 });
    expect(result.notes).toEqual(all);
  } finally {
    await server.close();
  }
});
