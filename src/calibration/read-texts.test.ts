import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { InterruptedError, OptionError } from '../errors.js';
import { nodeFileSystem } from '../file-system.js';
import { openTokenizer, type Tokenizer } from '../inference/tokenizer.js';
import { readTextTokens, type TextTools } from './read-texts.js';

const root = temporaryFolder();
let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await openTokenizer(await openCheckpoint(TINY_MODEL));
});

const refusing = (): never => {
  throw new Error('the last message must be the assistant');
};
async function read(name: string, content: string | Uint8Array, tools: Partial<TextTools> = {}) {
  writeFileSync(join(root, name), content);
  const openTemplate = async () => (messages: unknown) => `<${JSON.stringify(messages)}>`;
  return readTextTokens(join(root, name), { tokenizer, openTemplate, fs: nodeFileSystem, ...tools });
}

test('a text, with its name, size and hash', async () => {
  const { tokens, entry } = await read('a.txt', 'Ein Käse.\n');
  expect([...tokens]).toEqual([...Buffer.from('Ein Käse.\n')]); // the fixture's tokens are bytes
  expect(entry).toEqual({ name: 'a.txt', bytes: 11, sha256: createHash('sha256').update('Ein Käse.\n').digest('hex') });
});

test('a long text has the tokens of its parts, one after another', async () => {
  const text = `${'long lines of words '.repeat(30)}\n`.repeat(1000);
  const { tokens } = await read('long.txt', text);
  expect(Buffer.from(tokens).toString()).toBe(text);
});

test('JSON lines: texts and conversations follow each other', async () => {
  const lines = [
    '{"text": "one"}',
    '',
    '{"id": 7, "text": "two\\n"}',
    '{"messages": [{"role": "user", "content": "x"}]}',
  ];
  const { tokens } = await read('a.JSONL', `\ufeff${lines.join('\r\n')}\n`);
  expect(Buffer.from(tokens).toString()).toBe('onetwo\n<[{"role":"user","content":"x"}]>');
});

describe('is refused:', () => {
  const good = '{"text": "good"}\n';
  const chat = '{"messages": [{"role": "user", "content": "x"}]}';
  test.each<[string, string, Partial<TextTools>, string]>([
    ['a line that is no JSON', `${good}{"text": "x"`, {}, 'line 2: it is not a JSON object'],
    ['a line that is no object', `${good}\n"text"`, {}, 'line 3: it is not a JSON object'],
    ['a line without text', '{"content": "x"}', {}, 'line 1: it has neither'],
    ['a text that is no text', '{"text": 5}', {}, 'line 1: it has neither'],
    ['no messages', '{"messages": []}', {}, 'neither'],
    ['a message without a role', '{"messages": [{"content": "x"}]}', {}, 'neither'],
    [
      'messages for a model without a template',
      good + chat,
      { openTemplate: async () => undefined },
      'line 2: it has "messages"',
    ],
    [
      'messages that the template refuses',
      chat,
      { openTemplate: async () => refusing },
      "line 1: the model's chat template does not take",
    ],
  ])('%s', async (_, content, tools, words) => {
    const error = await read('bad.jsonl', content, tools).catch((it) => it);
    expect(error).toBeInstanceOf(OptionError);
    expect(error.message).toContain(words);
    expect(error.message).toContain('bad.jsonl');
  });

  test('a file that is larger than any needed', async () => {
    const fs = { ...nodeFileSystem, stat: async () => ({ size: 2 ** 30, mtimeMs: 0, ino: 0 }) };
    await expect(read('a.txt', 'x', { fs })).rejects.toThrow('more than is needed');
  });
});

test('reading can be stopped', async () => {
  await expect(read('a.txt', 'text', { signal: AbortSignal.abort() })).rejects.toThrow(InterruptedError);
});
