/** Results that are written to the hub and to S3: the bytes of a local run, all or nothing, and runs that go on. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { HUB_TOKEN, type HubServer, startHub } from '../../fixtures/hub-server.js';
import { S3_KEYS, type S3Server, startS3 } from '../../fixtures/s3-server.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { type Asked, type Fault, refuse, sometimes } from '../../fixtures/web-server.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import type { WebOptions } from '../../src/sources/web/web-options.js';
import { workFolder } from '../compute/state-folder.js';
import type { Progress, RunOptions } from '../run-options.js';
import { compress } from './compress.js';
import { expand } from './expand.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const at = (...path: string[]): string => join(root, ...path);
const OPTIONS: CompressOptions = { bases: 2, steps: 2, shardSize: 40_000, threads: 1 };
const HUB = 'hf://me/result';
const S3 = 's3://bucket/results/one';
/** Files that are not equal in two runs, and those that have their hashes. */
const TIMED = ['mobe.json'];

let hub: HubServer;
let s3: S3Server;
let web: WebOptions;
let before: NodeJS.ProcessEnv;
beforeAll(async () => {
  await generateCheckpoint(at('model'), { layers: 2, experts: 4, rows: 32, cols: 128, shardBytes: 250_000 });
  await compress(at('model'), at('whole'), OPTIONS);
  hub = await startHub({});
  s3 = await startS3('bucket', {});
  hub.partBytes = 16_000;
  const timing = { stallMs: 5000, firstWaitMs: 1, mostWaitMs: 20, patienceMs: 300, firstPatienceMs: 300 };
  const places = { HF_ENDPOINT: hub.hub.url, HF_TOKEN: HUB_TOKEN, HF_HOME: at('hf'), AWS_ENDPOINT_URL: s3.url };
  web = { timing, partBytes: 16_000, env: { ...places, AWS_REGION: 'eu-test-1', ...S3_KEYS } };
  before = { ...process.env };
  Object.assign(process.env, web.env);
});
beforeEach(() => {
  for (const part of [hub.hub, hub.storage, s3]) [part.fault, part.asked.length] = [undefined, 0];
  for (const name of Object.keys(hub.repos)) delete hub.repos[name];
  hub.blobs.clear();
  for (const key of Object.keys(s3.files)) delete s3.files[key];
  s3.uploads.clear();
  s3.history.length = 0;
});
afterAll(async () => {
  process.env = before;
  await hub.close();
  await s3.close();
});

/** The files at a place, by name. */
function filesAt(place: string): Record<string, Uint8Array> {
  if (place.startsWith('s3')) {
    const prefix = `${place.replace('s3://bucket/', '')}/`;
    return Object.fromEntries(Object.entries(s3.files).map(([key, bytes]) => [key.replace(prefix, ''), bytes]));
  }
  const repo = hub.repos[place.replace('hf://', '')];
  const { '.gitattributes': _, ...files } = repo?.commits[repo.refs.main ?? ''] ?? {};
  return files;
}

function expectWhole(place: string): void {
  const files = filesAt(place);
  expect(Object.keys(files).sort()).toEqual(readdirSync(at('whole')).sort());
  for (const [name, bytes] of Object.entries(files).filter(([it]) => !TIMED.includes(it)))
    expect([name, Buffer.compare(bytes, readFileSync(at('whole', name)))]).toEqual([name, 0]);
  expect(existsSync(workFolder(place))).toBe(false); // nothing is left here
}

const run = (place: string, more: RunOptions = {}) => compress(at('model'), place, OPTIONS, { web, ...more });

/** Stops a run when so many groups are finished. */
async function interrupted(place: string, groups: number): Promise<void> {
  const controller = new AbortController();
  let finished = 0;
  const onProgress = ({ kind }: Progress): void => {
    if (kind === 'group' && ++finished === groups) controller.abort();
  };
  await expect(run(place, { onProgress, signal: controller.signal })).rejects.toThrow(errors.InterruptedError);
}

/** Requests that carry bytes of weights. */
const sentParts = (): Asked[] =>
  [...hub.storage.asked, ...s3.asked].filter(({ method, path }) => method === 'PUT' && !/json|md|txt|jinja/.test(path));
const isShard = (asked: Asked): boolean => asked.method === 'PUT' && /safetensors|lfs/.test(asked.path);

describe.each([HUB, S3])('a result at %s', (place) => {
  const storage = (): { fault: Fault | undefined } => (place === HUB ? hub.storage : s3);

  test('has the bytes of a local one, and can be read, verified and found again', async () => {
    await run(place);
    expectWhole(place);
    expect((await verify(at('model'), place)).problems).toEqual([]);
    expect((await run(place)).already).toBe(true);
    await expect(compress(at('model'), place, { ...OPTIONS, bases: 1 }, { web })).rejects.toThrow(
      errors.OutputNotEmptyError,
    );
  });

  test('goes on after an interruption, and what is up is not sent again', async () => {
    await interrupted(place, 3);
    const before = sentParts().length;
    expect(before).toBeGreaterThan(0);
    expect(filesAt(place)['config.json']).toBeUndefined();
    const held = readdirSync(join(workFolder(place), '.mobe-partial')).filter((name) => name.endsWith('.safetensors'));
    const shards = readdirSync(at('whole')).filter((name) => name.endsWith('.safetensors'));
    expect(held.length).toBeLessThan(shards.length); // those that are up are not here any more
    await run(place);
    expectWhole(place);
    const bytes = shards.reduce((sum, name) => sum + readFileSync(at('whole', name)).byteLength, 0);
    // A file that was being sent to the hub is sent again.
    expect(sentParts().length).toBeLessThanOrEqual(Math.ceil(bytes / 16_000) + 2 * shards.length);
    const names = sentParts().map(({ path, query }) => `${path}?${query.get('partNumber')}`);
    if (place === S3) expect(new Set(names).size).toBe(names.length);
  });

  test('is sent again where it was lost in between', THOROUGH, async () => {
    await interrupted(place, 3);
    hub.blobs.clear();
    for (const key of Object.keys(s3.files)) delete s3.files[key];
    await run(place);
    expectWhole(place);
  });

  test('connections that are cut, refusals for a time, and addresses that expire change nothing', async () => {
    let requests = 0;
    storage().fault = (asked, response) => {
      if (!isShard(asked)) return false;
      const turn = ++requests % 7;
      if (turn === 1) asked.cut(5_000);
      if (turn === 2) return refuse(response, 503, { 'retry-after': '0' });
      if (requests === 3 && place === HUB) hub.expire();
      return false;
    };
    await run(place);
    expectWhole(place);
    expect(requests).toBeGreaterThan(5);
  });

  test.each<[string, number, Record<string, string>, new (...args: never[]) => Error]>([
    ['no right to write', 403, {}, errors.NoWriteAccessError],
    ['a full account', 507, {}, errors.StorageFullError],
    ['a limit of requests', 429, { 'retry-after': '3600' }, errors.RateLimitedError],
    ['a server that fails', 500, {}, errors.UploadFailedError],
  ])('%s in the middle ends the run, which can go on', async (_, status, headers, kind) => {
    const target = place === HUB ? hub.hub : s3;
    const fits = (asked: Asked): boolean => (place === HUB ? asked.path.endsWith('/batch') : isShard(asked));
    let requests = 0;
    target.fault = (asked, response) => fits(asked) && ++requests > 3 && refuse(response, status, headers);
    const error = await run(place).catch((it) => it);
    expect(error).toBeInstanceOf(kind);
    if (status !== 429) expect(error.message).toContain(place);
    expect(error.kept).toBe(place);
    expect(JSON.stringify([error.message, error.stack, error])).not.toMatch(/hf_|OfTheTests/);
    expect(filesAt(place)['config.json']).toBeUndefined();
    target.fault = undefined;
    await run(place);
    expectWhole(place);
  });

  test('nothing is left of a run that cannot go on', async () => {
    const broken = { ...OPTIONS, learningRate: 1e30, solver: 'adam' as const };
    await expect(compress(at('model'), place, broken, { web })).rejects.toThrow(errors.MobeError);
    expect(Object.keys(filesAt(place))).toEqual([]);
    expect(s3.uploads.size).toBe(0);
    expect(existsSync(workFolder(place))).toBe(false);
  });

  test('replaces another result only when forced, and completely', async () => {
    await compress(at('model'), place, { ...OPTIONS, shardSize: 20_000 }, { web });
    await expect(run(place)).rejects.toThrow(/holds another result/);
    await run(place, { force: true });
    expectWhole(place);
  });

  test('a folder that is not empty is refused', async () => {
    await run(place);
    if (place === S3) s3.files['results/one/photo.png'] = new Uint8Array(3);
    else
      (hub.repos['me/result'] as { commits: Record<string, object> }).commits[
        hub.repos['me/result']?.refs.main as string
      ] = { ...filesAt(place), 'photo.png': new Uint8Array(3) };
    await expect(compress(at('model'), place, { ...OPTIONS, bases: 1 }, { web, force: true })).rejects.toThrow(
      /holds photo.png/,
    );
  });
});

test('on the hub, one commit has everything, in a private model', async () => {
  await run(HUB);
  const repo = hub.repos['me/result'];
  expect(repo?.isPrivate).toBe(true);
  expect(Object.keys(repo?.commits ?? {})).toHaveLength(2);
  expect(new TextDecoder().decode(filesAt(HUB)['README.md'])).toContain('base_model:');
  expect(hub.storage.asked.every(({ authorization }) => authorization === undefined)).toBe(true);
});

test('on the hub, a branch and a folder can be named', async () => {
  await run(`${HUB}@v2/sub`);
  const repo = hub.repos['me/result'];
  expect(Object.keys(repo?.commits[repo.refs.v2 as string] ?? {})).toContain('sub/config.json');
  expect(Object.keys(repo?.commits[repo.refs.main as string] ?? {})).toEqual(['.gitattributes']);
  expect((await run(`${HUB}@v2/sub`)).already).toBe(true);
});

test('on the hub, a commit whose answer is lost is not made twice, and commits of others are kept', async () => {
  const isCommit = ({ path }: Asked): boolean => path.includes('/commit/');
  let seen = 0;
  hub.hub.fault = (asked, response) => {
    if (!isCommit(asked)) return false;
    seen++;
    const repo = hub.repos['me/result'] as { refs: Record<string, string>; commits: Record<string, object> };
    if (seen === 1) {
      repo.commits['c'.repeat(40)] = { ...repo.commits[repo.refs.main as string], 'notes.md': new Uint8Array(1) };
      repo.refs.main = 'c'.repeat(40);
    }
    if (seen === 2) response.end = () => response.destroy();
    return false;
  };
  await run(HUB);
  expect(seen).toBeGreaterThan(1);
  expect(Object.keys(hub.repos['me/result']?.commits ?? {})).toHaveLength(3);
  expect(Object.keys(filesAt(HUB))).toContain('notes.md');
  expect(Object.keys(filesAt(HUB))).toContain('config.json');
});

test('on the hub, a result that others put there in between is not mixed with', async () => {
  await interrupted(HUB, 3);
  const repo = hub.repos['me/result'] as { refs: Record<string, string>; commits: Record<string, object> };
  repo.commits['c'.repeat(40)] = { 'model.safetensors': new Uint8Array(1) };
  repo.refs.main = 'c'.repeat(40);
  await expect(run(HUB)).rejects.toThrow(errors.UploadConflictError);
  repo.commits['c'.repeat(40)] = { '.gitattributes': new Uint8Array(1) };
  await run(HUB);
  expectWhole(HUB);
});

test.each<[string, string, Record<string, string>, new (...args: never[]) => Error, RegExp]>([
  ['no token', HUB, { HF_TOKEN: '' }, errors.NoWriteAccessError, /no token.*settings\/tokens/],
  ['a bad token', HUB, { HF_TOKEN: 'hf_wrong' }, errors.BadCredentialsError, /in HF_TOKEN/],
  ['another account', 'hf://other/result', {}, errors.NoWriteAccessError, /may not write.*under the namespace/],
  ['a model of others', 'hf://me/foreign', {}, errors.NoWriteAccessError, /write token/],
  ['a commit', `${HUB}@${'1'.repeat(40)}`, {}, errors.InvalidLocationError, /is no branch/],
  ['no network', HUB, { HF_HUB_OFFLINE: '1' }, errors.OfflineError, /HF_HUB_OFFLINE/],
  ['no bucket', 's3://none', {}, errors.NotThereError, /no bucket none/],
  ['bad keys', S3, { AWS_ACCESS_KEY_ID: 'other' }, errors.BadCredentialsError, /AWS_ACCESS_KEY_ID/],
  [
    'no keys',
    S3,
    { AWS_ACCESS_KEY_ID: '', AWS_SHARED_CREDENTIALS_FILE: '/none' },
    errors.NoWriteAccessError,
    /Give credentials/,
  ],
])('%s is told before the work begins', async (_, place, env, kind, message) => {
  hub.repos['me/foreign'] = { commits: { ['1'.repeat(40)]: {} }, refs: { main: '1'.repeat(40) }, isForeign: true };
  let began = false;
  const onProgress = (): void => {
    began = true;
  };
  const error = await run(place, { web: { ...web, env: { ...web.env, ...env } }, onProgress }).catch((it) => it);
  expect(error).toBeInstanceOf(kind);
  expect(error.message).toMatch(message);
  expect(error.message).not.toMatch(/OfTheTests|hf_/);
  expect(began).toBe(false);
});

test('in S3, the files that a loader needs come last, and those of an old result go first', async () => {
  await compress(at('model'), S3, { ...OPTIONS, bases: 1 }, { web });
  s3.history.length = 0;
  await run(S3, { force: true });
  const names = s3.history.map((it) => it.replace('results/one/', ''));
  expect(names.slice(-2)).toEqual(['model.safetensors.index.json', 'config.json']);
  const firstShard = names.findIndex((it) => /^model-.*safetensors$/.test(it));
  for (const gone of ['-config.json', '-model.safetensors.index.json'])
    expect(names.indexOf(gone)).toBeLessThan(firstShard);
  expect(names.indexOf('-model.safetensors.index.json')).toBeGreaterThanOrEqual(0);
});

test('an interruption while the last shards are sent ends the sending', async () => {
  const controller = new AbortController();
  s3.fault = (asked) => {
    if (!isShard(asked)) return false;
    controller.abort();
    return true; // it never answers
  };
  await expect(run(S3, { signal: controller.signal })).rejects.toThrow(errors.InterruptedError);
  s3.fault = undefined;
  await run(S3);
  expectWhole(S3);
});

test('in S3, an upload whose last answer is lost is found', async () => {
  const isLast = ({ method, query }: Asked): boolean => method === 'POST' && query.has('uploadId');
  s3.fault = sometimes(2, isLast, (_, response) => {
    response.end = () => response.destroy();
    return false;
  });
  await run(S3);
  expectWhole(S3);
});

test('expand and a library user write to a place too', async () => {
  await expand(at('whole'), S3, { shardSize: 60_000, threads: 1 }, { web });
  await expand(at('whole'), at('dense'), { shardSize: 60_000, threads: 1 });
  for (const name of readdirSync(at('dense')).filter((it) => it.endsWith('.safetensors')))
    expect(Buffer.compare(filesAt(S3)[name] as Uint8Array, readFileSync(at('dense', name)))).toBe(0);
});
