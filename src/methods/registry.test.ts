import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, test } from 'vitest';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { resolveSettings } from '../conversion/settings.js';
import { METHODS, registeredModules, registerMethod } from './registry.js';

const root = temporaryFolder();

function moduleOf(name: string, text: string): URL {
  const path = join(root, `${name}.mjs`);
  writeFileSync(path, text);
  return pathToFileURL(path);
}

test('a method that is registered is there for settings, and its module for threads', async () => {
  const complete = '({ groups = 1 }) => ({ groups, solver: "only", steps: 1 })';
  const own = `{ name: 'own', solvers: ['only'], options: ['groups'], complete: ${complete}, async fit() {} }`;
  const module = moduleOf('own', `export default ${own}`);
  const method = await registerMethod(module);
  expect(await registerMethod(module.href)).toBe(method);
  expect(registeredModules()).toEqual([module.href]);
  expect([...METHODS.keys()]).toEqual(['mobe', 'svd', 'quantise', 'own']);
  expect(resolveSettings({ method: 'own', groups: 2 })).toMatchObject({ solver: 'only', steps: 1, groups: 2 });
  expect(() => resolveSettings({ method: 'own', bases: 2 })).toThrow('--method own has no use for it');
});

test('refused: a module without a method, a name that is taken, and a name that nobody registered', async () => {
  await expect(registerMethod(moduleOf('none', 'export const method = {}'))).rejects.toThrow(/none\.mjs has no method/);
  const twin = moduleOf('twin', "export default { name: 'svd', async fit() {} }");
  await expect(registerMethod(twin)).rejects.toThrow('there is a method "svd" already');
  expect(registeredModules()).not.toContain(twin.href);
  expect(() => resolveSettings({ method: 'nobody' })).toThrow(/^--method: there is no method nobody; .*mobe, svd/);
  expect(() => resolveSettings({ solver: 'nobody' })).toThrow('not solved by nobody, but by varpro, adam');
});
