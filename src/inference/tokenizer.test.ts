import { copyFileSync, cpSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { reference } from '../../fixtures/inference.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { TokenizerError } from '../errors.js';
import { endTokens, openTokenizer, textStream } from './tokenizer.js';

const checkpoint = await openCheckpoint(TINY_MODEL);
const tokenizer = await openTokenizer(checkpoint);
const root = temporaryFolder();

test("encodes the reference's prompts to its tokens", () => {
  for (const { prompt, prompt_ids } of reference.prompts) expect(tokenizer.encode(prompt, true)).toEqual(prompt_ids);
});

test('decodes what it encoded, whatever the characters', () => {
  const text = 'def f(x): return "Gauß — 漢字 🙂"\n\t';
  expect(tokenizer.encode(text, false)).toEqual([...Buffer.from(text)]);
  expect(tokenizer.decode([...Buffer.from(text)])).toBe(text);
  expect(tokenizer.decode([])).toBe('');
});

test('a stream hands out characters once they are whole, and at the end what is left', () => {
  const stream = textStream(tokenizer);
  const pieces = [...Buffer.from('ß🙂x')].map((byte) => stream.push(byte));
  expect(pieces).toEqual(['', 'ß', '', '', '', '🙂', 'x']);
  stream.push(0xf0);
  stream.push(0x9f);
  expect(stream.end()).toMatch(/^\ufffd+$/);
});

test('a stream of bytes that make no character goes on after them', () => {
  const stream = textStream(tokenizer);
  const text = [...Buffer.from('a'), 0xff, ...Buffer.from('bc')].map((byte) => stream.push(byte)).join('');
  expect(text + stream.end()).toBe('a\ufffdbc');
});

test('special tokens are no text', () => {
  const stream = textStream(tokenizer);
  expect([97, 256, 98].map((token) => stream.push(token))).toEqual(['a', '', 'b']);
});

test('the tokens that end a text are those of generation_config.json, or of the config', async () => {
  expect([...(await endTokens(checkpoint))]).toEqual([256]);
  const folder = join(root, 'bare');
  cpSync(TINY_MODEL, folder, { recursive: true, filter: (file) => !/generation_config|tokenizer/.test(file) });
  const bare = await openCheckpoint(folder);
  expect([...(await endTokens(bare))]).toEqual([256]);
  await expect(openTokenizer(bare)).rejects.toThrow(TokenizerError);
  writeFileSync(join(folder, 'tokenizer.json'), '{"model": 7}');
  await expect(openTokenizer(await openCheckpoint(folder))).rejects.toThrow(TokenizerError);
  copyFileSync(join(TINY_MODEL, 'tokenizer.json'), join(folder, 'tokenizer.json'));
  expect((await openTokenizer(await openCheckpoint(folder))).encode('ab', true)).toEqual([97, 98]);
});
