import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { FolderLockedError } from '../errors.js';
import { nodeFileSystem } from '../file-system.js';
import { LOCK_FILE, lockFolder } from './folder-lock.js';

const root = temporaryFolder();
const lock = (folder: string, force = false) => lockFolder(folder, force, nodeFileSystem);

function locked(name: string, holder: unknown): string {
  const folder = join(root, name);
  mkdirSync(folder);
  writeFileSync(join(folder, LOCK_FILE), typeof holder === 'string' ? holder : JSON.stringify(holder));
  return folder;
}

test('one at a time: the second is told who has it, by force or not; once it is given back, anyone can', async () => {
  const folder = join(root, 'one');
  const first = await lock(folder);
  for (const force of [false, true]) {
    await expect(lock(folder, force)).rejects.toThrow(FolderLockedError);
    await expect(lock(folder, force)).rejects.toThrow(`process ${process.pid} on ${hostname()}`);
  }
  await first.release();
  expect(existsSync(join(folder, LOCK_FILE))).toBe(false);
  await (await lock(folder)).release();
});

test('of many at once, one gets it', async () => {
  const folder = join(root, 'many');
  const tries = await Promise.allSettled(Array.from({ length: 20 }, () => lock(folder)));
  expect(tries.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
});

test('the lock of a process that is gone is void', async () => {
  const { pid } = spawnSync(process.execPath, ['-e', '']);
  const folder = locked('gone', { pid, host: hostname(), since: '2026-01-01T00:00:00Z' });
  await (await lock(folder)).release();
});

test('the lock of a process that runs is not', async () => {
  const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)']);
  const folder = locked('runs', { pid: child.pid, host: hostname(), since: '2026-01-01T00:00:00Z' });
  await expect(lock(folder)).rejects.toThrow(`process ${child.pid}`);
  child.kill('SIGKILL');
  await once(child, 'exit');
  await (await lock(folder)).release();
});

test.skipIf(process.platform !== 'linux')('a number that was given out again does not make a lock', async () => {
  // This process runs, but it started at another time.
  const folder = locked('reused', { pid: process.pid, host: hostname(), started: 'another boot 1', since: 'long ago' });
  await (await lock(folder)).release();
});

test('the lock of another machine is left alone unless forced', async () => {
  const folder = locked('elsewhere', { pid: 1, host: 'another-machine', since: '2026-01-01T00:00:00Z' });
  await expect(lock(folder)).rejects.toThrow('another-machine');
  await expect(lock(folder)).rejects.toThrow('--force');
  await lock(folder, true);
  expect(JSON.parse(readFileSync(join(folder, LOCK_FILE), 'utf8'))).toMatchObject({ pid: process.pid });
});

test('a lock that was cut off while it was written is void', async () => {
  for (const [i, text] of ['', '{"pid":12'].entries()) await (await lock(locked(`torn-${i}`, text))).release();
});
