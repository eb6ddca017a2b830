/** A peer that serves a checkpoint must not choose where its files are written. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { generateFamily } from '../../fixtures/generate-family.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { UnsafePathError } from '../../src/errors.js';
import { LocalFiles } from '../../src/sources/files.js';
import { type Listener, listen } from '../../src/transport/listen.js';
import { FILE_SERVICE, type FileInfo, offerFiles } from '../../src/transport/served-files.js';
import { compress } from '../operations/compress.js';
import { openSource } from './remote-files.js';

const root = temporaryFolder();
const listeners: Listener[] = [];
afterEach(async () => {
  await Promise.all(listeners.splice(0).map((listener) => listener.close()));
});

/** Serves `folder`, and also lists files that lie elsewhere. */
async function serveWith(folder: string, claimed: readonly string[]): Promise<string> {
  const files = new LocalFiles();
  const held = [...(await files.list(folder))].map(({ path, bytes }): FileInfo => ({ file: path, bytes, modified: 0 }));
  const list = [...held, ...claimed.map((file) => ({ file, bytes: 4, modified: 0 }))];
  const listener = await listen({ host: '127.0.0.1', port: 0, service: FILE_SERVICE }, (channel) =>
    offerFiles(channel, {
      list: async () => list,
      read: async (file, position, target) =>
        claimed.includes(file) ? void target.fill(0x78) : files.read(join(folder, file), position, target),
    }),
  );
  listeners.push(listener);
  return listener.url;
}

const QUICK = { bases: 1, steps: 1, threads: 1, layers: [] };

test.each(['../escaped', '../../escaped', '/tmp/escaped', 'a/../../escaped', 'a\\b', 'C:escaped'])(
  'a file called %j is refused',
  async (claimed) => {
    const model = join(root, 'model');
    if (!existsSync(model))
      await generateFamily(model, 'qwen3_moe', { sizes: { layers: 1, experts: 4, rows: 8, cols: 16 } });
    const url = await serveWith(model, [claimed]);
    await expect(openSource(url)).rejects.toThrow(UnsafePathError);
    await expect(compress(url, join(root, 'deep', 'er', 'out'), QUICK)).rejects.toThrow(UnsafePathError);
    expect(existsSync(join(root, 'deep', 'escaped'))).toBe(false);
    expect(existsSync(join(root, 'escaped'))).toBe(false);
  },
);

test('files in folders come along, hidden ones do not', async () => {
  const url = await serveWith(join(root, 'model'), [
    'assets/template.txt',
    '.git/hooks/post-checkout',
    'assets/.secret',
  ]);
  const out = join(root, 'out');
  await compress(url, out, QUICK);
  expect(readFileSync(join(out, 'assets', 'template.txt'), 'utf8')).toBe('xxxx');
  expect(existsSync(join(out, '.git'))).toBe(false);
  expect(existsSync(join(out, 'assets', '.secret'))).toBe(false);
  expect(readFolder(out).size).toBe(readFolder(join(root, 'model')).size);
});
