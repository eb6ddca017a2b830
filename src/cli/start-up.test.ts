import { dirname, join } from 'node:path';
import { Command } from 'commander';
import { expect, test } from 'vitest';
import { CLI } from '../../fixtures/paths.js';
import { packagesOf } from '../../fixtures/static-imports.js';
import { COMMANDS } from './commands.js';

test('what every start loads is small: "mobe --help" is there at once', () => {
  expect([...packagesOf(CLI)].sort()).toEqual(['commander', 'node:module']);
});

test.each(COMMANDS)('$name --help waits for no engine, stream or socket', ({ name }) => {
  const packages = packagesOf(join(dirname(CLI), `${name}.js`));
  for (const heavy of ['onnxruntime-node', 'highland', 'ws', 'protobufjs', '@huggingface/tokenizers'])
    expect(packages).not.toContain(heavy);
});

test.each(COMMANDS)('$name takes the arguments that the list of commands shows', async ({ args, load }) => {
  const command = new Command();
  (await load()).define(command);
  expect(command.usage()).toBe(`[options] ${args}`.trimEnd());
});
