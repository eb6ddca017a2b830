import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { TokenizerError } from '../errors.js';
import { LocalFiles } from '../sources/files.js';
import { type ChatTemplate, openChatTemplate } from './chat-template.js';

const root = temporaryFolder();

/** Qwen's, shortened. */
const TEMPLATE = `{%- if messages[0].role == 'system' %}
    {{- eos_token + '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}`;
const MESSAGES = [
  { role: 'system', content: 'Be brief.' },
  { role: 'user', content: ' Hello ' },
  { role: 'assistant', content: 'Hi!' },
];

let folders = 0;
async function openIn(files: Record<string, string | object>): Promise<ChatTemplate | undefined> {
  const folder = join(root, String(folders++));
  mkdirSync(folder);
  for (const [name, content] of Object.entries(files))
    writeFileSync(join(folder, name), typeof content === 'string' ? content : JSON.stringify(content));
  return openChatTemplate({ folder, files: new LocalFiles() } as unknown as Checkpoint);
}

async function render(template: string, messages: Parameters<ChatTemplate>[0] = MESSAGES): Promise<string> {
  return ((await openIn({ 'chat_template.jinja': template })) as ChatTemplate)(messages);
}

test("gives the text of transformers' apply_chat_template", async () => {
  const config = { chat_template: TEMPLATE, bos_token: null, eos_token: { content: '<|endoftext|>', special: true } };
  const template = await openIn({ 'tokenizer_config.json': config });
  expect(template?.(MESSAGES)).toBe(
    '<|endoftext|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n',
  );
});

describe('is found', () => {
  const named = {
    chat_template: [
      { name: 'tools', template: 'tools' },
      { name: 'default', template: 'usual' },
    ],
  };
  test.each<[string, Record<string, string | object>, string | undefined]>([
    ['in a file of its own first', { 'chat_template.jinja': 'own', 'tokenizer_config.json': named }, 'own'],
    ['by its name', { 'tokenizer_config.json': named }, 'usual'],
    ['nowhere', { 'tokenizer_config.json': { chat_template: null } }, undefined],
    ['nowhere without files', {}, undefined],
  ])('%s', async (_, files, text) => {
    expect((await openIn(files))?.(MESSAGES)).toBe(text);
  });
});

test('may use the functions of transformers, with a date that does not change', async () => {
  expect(await render('{% for i in range(2, 5) %}{{ i }},{% endfor %}{{ range(3) | length }}')).toBe('2,3,4,3');
  expect(await render("{{ strftime_now('%d %b %Y') }}{{ none is none and true }}")).toBe('01 Jan 2026true');
  await expect(render("{{ raise_exception('roles must alternate') }}")).rejects.toThrow('roles must alternate');
});

test('that cannot be parsed is refused, with its file', async () => {
  const error = await openIn({ 'chat_template.jinja': '{% if %}' }).catch((it) => it);
  expect(error).toBeInstanceOf(TokenizerError);
  expect(error.message).toContain('chat_template.jinja');
});
