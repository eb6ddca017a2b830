/** Compares the files that docs/architecture.md names with the files that exist. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { expect, test } from 'vitest';
import { ROOT } from '../fixtures/paths.js';

const page = readFileSync(`${ROOT}docs/architecture.md`, 'utf8');

test('imports have no cycles, those of types included', () => {
  const imports = new Map<string, readonly string[]>();
  for (const folder of ['src', 'streams'])
    for (const path of readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })) {
      if (!path.endsWith('.ts') || path.endsWith('.test.ts')) continue;
      const file = join(folder, path);
      const found = readFileSync(join(ROOT, file), 'utf8').matchAll(/(?:from|import\()\s*'(\.[^']+)\.js'/g);
      imports.set(
        file,
        [...found].map(([, to = '']) => `${normalize(join(dirname(file), to))}.ts`),
      );
    }
  const done = new Set<string>();
  const follow = (file: string, way: readonly string[]): void => {
    if (way.includes(file)) expect.fail([...way.slice(way.indexOf(file)), file].join(' -> '));
    if (done.has(file)) return;
    for (const next of imports.get(file) ?? []) follow(next, [...way, file]);
    done.add(file);
  };
  expect(imports.size).toBeGreaterThan(200);
  for (const file of imports.keys()) follow(file, []);
});

test('every file and folder that the page names is there', () => {
  const named = [...page.matchAll(/`((?:src|streams|bench|fixtures)\/[\w./-]*)`/g)].map(([, path = '']) => path);
  expect(named.length).toBeGreaterThan(40);
  expect(named.filter((path) => !existsSync(join(ROOT, path)))).toEqual([]);
});

test('a tensor passes at most 25 files', () => {
  const [, way = ''] = /## The way of a tensor\n(.*?)\n## /s.exec(page) ?? [];
  const files = new Set([...way.matchAll(/`((?:src|streams)\/[\w./-]+\.ts)`/g)].map(([, path]) => path));
  expect(files.size).toBeGreaterThan(15);
  expect(files.size).toBeLessThanOrEqual(25);
});
