/** docs/library.md, as it stands: its examples are compiled, run in this repository's place, and print what the page says. */
import { execFile } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import ts from 'typescript';
import { beforeAll, describe, expect, test } from 'vitest';
import { ROOT } from '../fixtures/paths.js';
import { temporaryFolder } from '../fixtures/temporary-folder.js';
import { THOROUGH, thoroughBut } from '../fixtures/thorough.js';

const page = readFileSync(`${ROOT}docs/library.md`, 'utf8');
const examples = [...page.matchAll(/```ts\n\/\/ (\S+)\.ts\n(.*?)```\n(?:\n```text\n(.*?)```)?/gs)].map(
  ([, name = '', code = '', output]) => ({ name, code, output }),
);
const place = temporaryFolder();

beforeAll(() => {
  const link = (path: string, target: string): void => {
    mkdirSync(dirname(join(place, path)), { recursive: true });
    symlinkSync(target, join(place, path));
  };
  link('fixtures', `${ROOT}fixtures`);
  link('node_modules/mobe-stream', ROOT);
  link('node_modules/zod', `${ROOT}node_modules/zod`);
  writeFileSync(join(place, 'package.json'), '{ "type": "module" }');
  const options = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext };
  for (const { name, code } of examples) {
    writeFileSync(join(place, `${name}.ts`), code);
    writeFileSync(join(place, `${name}.js`), ts.transpileModule(code, { compilerOptions: options }).outputText);
  }
});

test('every code block of the page is an example', () => {
  expect(examples.length).toBe(page.split('```ts\n').length - 1);
  expect(examples.length).toBeGreaterThan(6);
});

describe('an example prints what the page says:', () => {
  const cost = thoroughBut('own-stage', 'memory-source');
  for (const { name, output } of examples.filter((it) => it.output !== undefined))
    test(name, cost(name), async () => {
      const { stdout } = await promisify(execFile)(process.execPath, [`${name}.js`], { cwd: place });
      expect(stdout).toBe(output);
    });
});

test('a pipeline of one’s own has at most 20 lines', () => {
  for (const { name, code } of examples.filter((it) => ['own-stage', 'by-hand'].includes(it.name)))
    expect(code.split('\n').filter(Boolean).length, name).toBeLessThanOrEqual(20);
});

test('the examples have no errors of types, for a program that is strict', THOROUGH, () => {
  const program = ts.createProgram(
    examples.map(({ name }) => join(place, `${name}.ts`)),
    {
      strict: true,
      noEmit: true,
      skipLibCheck: true,
      target: ts.ScriptTarget.ES2022,
      lib: ['lib.es2023.d.ts'],
      module: ts.ModuleKind.NodeNext,
      moduleResolution: ts.ModuleResolutionKind.NodeNext,
      typeRoots: [`${ROOT}node_modules/@types`],
      types: ['node'],
    },
  );
  const found = ts.getPreEmitDiagnostics(program);
  expect(ts.formatDiagnostics(found, { ...ts.sys, getCanonicalFileName: (it) => it, getNewLine: () => '\n' })).toBe('');
});
