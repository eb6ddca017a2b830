import { existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openStateFolder, type StateFolder } from './state-folder.js';

temporaryFolder();
const open = async (url: string, identity: unknown, force = false): Promise<StateFolder> =>
  (await openStateFolder(url, identity, force)) as StateFolder;
const save = ({ path }: StateFolder) => writeFileSync(join(path, '.group.state'), 'state');
const holds = ({ path }: StateFolder) => readdirSync(path).includes('.group.state');

test('states are there for the same run again, and for no other', async () => {
  const first = await open('ws://a:1/', { run: 1 });
  save(first);
  expect(await first.leave(true)).toBe(true);
  const again = await open('ws://a:1/', { run: 1 });
  expect(again.path).toBe(first.path);
  expect(holds(again)).toBe(true);
  await again.leave(true);
  const other = await open('ws://a:1/', { run: 2 });
  expect(holds(other)).toBe(false);
  expect(await other.leave(true)).toBe(false); // it has no states
  expect(existsSync(other.path)).toBe(false);
});

test('forced, the same run begins anew; when it is over nothing is left', async () => {
  const first = await open('ws://b:1/', { run: 1 });
  save(first);
  await first.leave(true);
  const forced = await open('ws://b:1/', { run: 1 }, true);
  expect(holds(forced)).toBe(false);
  save(forced);
  expect(await forced.leave(false)).toBe(false);
  expect(existsSync(forced.path)).toBe(false);
});

test('one that another run uses is left alone; another address has another', async () => {
  const first = await open('ws://c:1/', { run: 1 });
  expect(await openStateFolder('ws://c:1/', { run: 1 }, true)).toBeUndefined();
  const other = await open('ws://c:2/', { run: 1 });
  expect(other.path).not.toBe(first.path);
  await first.leave(false);
  await other.leave(false);
});

test('where there is no place for it there is none', async () => {
  const cache = process.env.XDG_CACHE_HOME as string;
  rmSync(cache, { recursive: true, force: true });
  writeFileSync(cache, 'a file');
  expect(await openStateFolder('ws://d:1/', { run: 1 }, false)).toBeUndefined();
  rmSync(cache);
});
