/** Models on the hub are read by ranges, at one commit, and each refusal says what to do. */
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { HUB_TOKEN, type HubServer, startHub } from '../../../fixtures/hub-server.js';
import { TINY_MODEL } from '../../../fixtures/paths.js';
import { temporaryFolder } from '../../../fixtures/temporary-folder.js';
import { type Asked, refuse, sendFile, sometimes } from '../../../fixtures/web-server.js';
import { checkWeights } from '../../../streams/operations/check-weights.js';
import { streamCheckpoint } from '../../../streams/operations/stream.js';
import { fingerprint, openCheckpoint } from '../../checkpoint/open-checkpoint.js';
import * as errors from '../../errors.js';
import { nullOutput } from '../../output/null-output.js';
import type { Files } from '../files.js';
import { hubFiles } from './hub-files.js';
import { parseHubLocation } from './hub-location.js';

const root = temporaryFolder();
const [OLD, NEW] = ['a'.repeat(40), 'b'.repeat(40)];
const NAMES = [
  ...[
    'config.json',
    'generation_config.json',
    'model.safetensors.index.json',
    'tokenizer.json',
    'tokenizer_config.json',
  ],
  ...[1, 2, 3].map((n) => `model-0000${n}-of-00003.safetensors`),
];
const model = Object.fromEntries(NAMES.map((name) => [name, new Uint8Array(readFileSync(join(TINY_MODEL, name)))]));
const LOCATION = 'hf://org/tiny';
const TIMING = { stallMs: 5000, firstWaitMs: 1, mostWaitMs: 20, patienceMs: 400, firstPatienceMs: 100 };

let server: HubServer;
beforeAll(async () => {
  const commits = {
    [OLD]: { ...model, '.gitattributes': new Uint8Array(3) },
    [NEW]: { 'config.json': new Uint8Array(2) },
  };
  const plain = { commits: { [OLD]: model }, refs: { main: OLD } };
  server = await startHub(
    {
      'org/tiny': { commits, refs: { main: OLD, 'refs/pr/1': NEW, 'v1.0': OLD } },
      'org/gated': { ...plain, gated: true },
      'org/private': { ...plain, isPrivate: true },
      'org/deep': {
        commits: {
          [OLD]: Object.fromEntries(Object.entries(model).map(([name, bytes]) => [`sub/a b/${name}`, bytes])),
        },
        refs: { main: OLD },
      },
    },
    { 'org/old': 'other/new' },
  );
});
beforeEach(() => {
  for (const part of [server.hub, server.storage]) {
    part.fault = undefined;
    part.asked.length = 0;
    part.sent = 0;
  }
});
afterAll(() => server.close());

const open = (location = LOCATION, env: Record<string, string> = {}): { folder: string; files: Files } => ({
  folder: location,
  files: hubFiles(location, { web: { timing: TIMING, env: { HF_ENDPOINT: server.hub.url, HF_HOME: root, ...env } } }),
});

describe('a location on the hub', () => {
  test.each([
    ['hf://org/name', 'org/name', 'main', ''],
    ['hf://org/name/a/b', 'org/name', 'main', 'a/b'],
    ['hf://org/na.me_-1@v1.0/a', 'org/na.me_-1', 'v1.0', 'a'],
    ['hf://org/name@refs/pr/1/a', 'org/name', 'refs/pr/1', 'a'],
    ['hf://org/name@a%2Fb', 'org/name', 'a/b', ''],
  ])('%s', (location, repo, revision, below) => {
    expect(parseHubLocation(location)).toEqual({ location, repo, revision, below });
  });

  test.each([
    'hf://name',
    'hf://org/',
    'hf://datasets/org/name',
    'hf://org/a--b',
    'hf://org/-a',
    'hf://org/a/../b',
    'hf://o g/a',
  ])('%s is none', (location) => expect(() => parseHubLocation(location)).toThrow(errors.InvalidLocationError));
});

describe('a model on the hub', () => {
  test('is opened by the ranges of its headers, at one commit, with few requests to the hub', async () => {
    const checkpoint = await openCheckpoint(open());
    expect(checkpoint.tensors).toEqual(
      new Map(
        [...(await openCheckpoint(TINY_MODEL)).tensors].map(([name, tensor]) => [
          name,
          { ...tensor, file: tensor.file.replace(TINY_MODEL, LOCATION) },
        ]),
      ),
    );
    expect(await checkpoint.files.commit?.(LOCATION)).toBe(OLD);
    const total = NAMES.reduce((sum, name) => sum + (model[name] as Uint8Array).byteLength, 0);
    expect(server.hub.sent + server.storage.sent).toBeLessThan(total / 10);
    expect(server.storage.asked).toHaveLength(3); // a shard's header is one request
    const resolved = server.hub.asked.map(({ path }) => path).filter((path) => path.includes('/resolve/'));
    expect(resolved.every((path) => path.includes(`/resolve/${OLD}/`))).toBe(true);
    expect(await fingerprint(checkpoint)).toBe(await fingerprint(await openCheckpoint(TINY_MODEL)));
    expect(
      server.hub.asked.filter(({ path }) => path.includes('/resolve/') && path.endsWith('.safetensors')),
    ).toHaveLength(3);
  });

  test.each(['@v1.0', `@${OLD}`])('is read at %s', async (revision) => {
    expect((await openCheckpoint(open(`${LOCATION}${revision}`))).tensors.size).toBe(423);
  });

  test('is read from a folder of its repository', async () => {
    expect((await openCheckpoint(open('hf://org/deep/sub/a b'))).tensors.size).toBe(423);
    await expect(openCheckpoint(open('hf://org/deep/other'))).rejects.toThrow('no folder "other"');
  });

  test('a long read is several requests at a time, and each byte is sent once', async () => {
    const { folder, files } = open();
    const name = NAMES[5] as string;
    const whole = model[name] as Uint8Array;
    expect(
      Buffer.compare(await files.readRange({ file: `${folder}/${name}`, start: 0, end: whole.length }), whole),
    ).toBe(0);
    expect(server.storage.sent).toBe(whole.length);
    await expect(files.readRange({ file: `${folder}/${name}`, start: 1, end: whole.length + 1 })).rejects.toThrow(
      errors.ReadError,
    );
    await files.close();
  });

  test('signed addresses that expire are asked for anew', async () => {
    const { folder, files } = open();
    const range = { file: `${folder}/${NAMES[5]}`, start: 100, end: 200 };
    const before = await files.readRange(range);
    server.expire();
    expect(await files.readRange(range)).toEqual(before);
  });

  test('the token goes to the hub and to no other host', async () => {
    await openCheckpoint(open('hf://org/private', { HF_TOKEN: HUB_TOKEN }));
    expect(server.hub.asked.every(({ authorization }) => authorization === `Bearer ${HUB_TOKEN}`)).toBe(true);
    expect(server.storage.asked.length).toBeGreaterThan(0);
    expect(server.storage.asked.every(({ authorization }) => authorization === undefined)).toBe(true);
  });

  test('the token is found in its file', async () => {
    writeFileSync(join(root, 'token-file'), `${HUB_TOKEN}\n`);
    const opened = await openCheckpoint(open('hf://org/private', { HF_TOKEN_PATH: join(root, 'token-file') }));
    expect(opened.tensors.size).toBe(423);
  });

  test.each<[string, string, Record<string, string>, new (...args: never[]) => Error, RegExp]>([
    [
      'missing',
      'hf://org/none',
      {},
      errors.NotThereError,
      /no model org\/none, or it is private and no token was given.*HF_TOKEN/,
    ],
    ['private', 'hf://org/private', {}, errors.NotThereError, /HF_TOKEN/],
    ['missing revision', 'hf://org/tiny@v9', {}, errors.NotThereError, /no revision "v9"/],
    ['gated', 'hf://org/gated', {}, errors.GatedModelError, /Ask for it at http.*\/org\/gated.*HF_TOKEN/],
    [
      'gated, with a token',
      'hf://org/gated',
      { HF_TOKEN: HUB_TOKEN },
      errors.GatedModelError,
      /account of the token in HF_TOKEN/,
    ],
    ['renamed', 'hf://org/old@v1', {}, errors.RenamedModelError, /hf:\/\/other\/new@v1/],
    [
      'bad token',
      'hf://org/tiny',
      { HF_TOKEN: 'hf_wrong' },
      errors.BadCredentialsError,
      /in HF_TOKEN.*settings\/tokens/,
    ],
    ['unusable token', 'hf://org/tiny', { HF_TOKEN: 'hf_ä' }, errors.BadCredentialsError, /in HF_TOKEN/],
    ['offline', 'hf://org/none', { HF_HUB_OFFLINE: '1' }, errors.OfflineError, /HF_HUB_OFFLINE/],
    [
      'another server',
      'hf://org/tiny',
      { HF_ENDPOINT: 'http://127.0.0.1:1' },
      errors.ServerFailedError,
      /127.0.0.1:1.*nothing listens/,
    ],
  ])('%s is told as that, without the token', async (_, location, env, kind, message) => {
    const error = await openCheckpoint(open(location, env)).catch((it) => it);
    expect(error).toBeInstanceOf(kind);
    expect(error.message).toMatch(message);
    expect(JSON.stringify([error.message, error.stack, error])).not.toMatch(/hf_/);
  });

  test('files of the cache are not downloaded, and are enough offline', async () => {
    const cache = join(root, 'cache');
    const repo = join(cache, 'models--org--tiny');
    for (const name of NAMES) {
      for (const part of ['snapshots', 'blobs']) mkdirSync(dirname(join(repo, part, OLD, name)), { recursive: true });
      writeFileSync(join(repo, 'blobs', name), model[name] as Uint8Array);
      symlinkSync(join('../../blobs', name), join(repo, 'snapshots', OLD, name));
    }
    mkdirSync(join(repo, 'refs'));
    writeFileSync(join(repo, 'refs', 'main'), OLD);
    await openCheckpoint(open(LOCATION, { HF_HUB_CACHE: cache }));
    expect(server.storage.asked).toEqual([]);
    server.hub.asked.length = 0;
    const offline = await openCheckpoint(open(LOCATION, { HF_HUB_CACHE: cache, HF_HUB_OFFLINE: '1' }));
    expect(offline.tensors.size).toBe(423);
    expect(await offline.files.commit?.(LOCATION)).toBe(OLD);
    expect(server.hub.asked).toEqual([]);
  });

  const openKept = (cache: string, env: Record<string, string> = {}) => ({
    folder: LOCATION,
    files: hubFiles(LOCATION, {
      peers: { cache: true },
      web: { timing: TIMING, env: { HF_ENDPOINT: server.hub.url, HF_HUB_CACHE: join(root, cache), ...env } },
    }),
  });

  test('with --cache, files are kept in the layout of huggingface_hub, once more than a header is read', async () => {
    const repo = join(root, 'kept', 'models--org--tiny');
    const opened = await openCheckpoint(openKept('kept'));
    const snapshot = join(repo, 'snapshots', OLD);
    expect(readdirSync(snapshot).some((name) => name.endsWith('.safetensors'))).toBe(false);
    await streamCheckpoint(opened, nullOutput());
    expect(readFileSync(join(repo, 'refs', 'main'), 'utf8')).toBe(OLD);
    for (const name of NAMES) {
      const bytes = model[name] as Uint8Array;
      expect(Buffer.compare(readFileSync(join(snapshot, name)), bytes)).toBe(0);
      const large = name.endsWith('.safetensors');
      const hash = large ? createHash('sha256') : createHash('sha1').update(`blob ${bytes.byteLength}\0`);
      expect(readlinkSync(join(snapshot, name))).toBe(join('../../blobs', hash.update(bytes).digest('hex')));
    }
    expect(readdirSync(join(repo, 'blobs'))).toHaveLength(NAMES.length);
    server.storage.asked.length = 0;
    await streamCheckpoint(await openCheckpoint(openKept('kept')), nullOutput());
    await streamCheckpoint(await openCheckpoint(openKept('kept', { HF_HUB_OFFLINE: '1' })), nullOutput());
    expect(server.storage.asked).toEqual([]);
  });

  test('with --cache, a damaged or interrupted download leaves nothing in the cache', async () => {
    const blobs = join(root, 'damaged', 'models--org--tiny', 'blobs');
    const oid = createHash('sha256')
      .update(model[NAMES[5] as string] as Uint8Array)
      .digest('hex');
    for (const fault of [
      (asked: Asked, response: ServerResponse) =>
        sendFile(asked, response, new Uint8Array((model[NAMES[5] as string] as Uint8Array).byteLength)),
      (_: Asked, response: ServerResponse) => refuse(response, 500),
    ]) {
      server.storage.fault = (asked, response) =>
        asked.path.endsWith(oid) && !asked.range?.startsWith('bytes=0-196607') && fault(asked, response);
      const { folder, files } = openKept('damaged');
      const range = { file: `${folder}/${NAMES[5]}`, start: 0, end: 500_000 };
      await expect(files.readRange(range)).rejects.toThrow(errors.MobeError);
      expect(readdirSync(blobs)).toEqual([]);
      server.storage.fault = undefined;
      await files.readRange(range);
      expect(readdirSync(blobs)).toEqual([oid]);
      await files.close();
      rmSync(join(root, 'damaged'), { recursive: true });
    }
  });

  test('a limit of requests is waited for as the hub tells, and is not exceeded for ever', async () => {
    const isApi = ({ path }: { path: string }): boolean => path.startsWith('/api');
    server.hub.fault = sometimes(1, isApi, (_, response) => refuse(response, 429, { ratelimit: '"api";r=0;t=1' }));
    const began = performance.now();
    await openCheckpoint(open());
    expect(performance.now() - began).toBeGreaterThan(1000);
    server.hub.fault = (_, response) => refuse(response, 429, { 'retry-after': '3600' });
    await expect(openCheckpoint(open())).rejects.toThrow(/wait for 3600 s\. .*token in HF_TOKEN/);
    server.hub.fault = (_, response) => refuse(response, 429);
    await expect(openCheckpoint(open())).rejects.toThrow(errors.RateLimitedError);
  });

  test('damage on the way is found by commands that read a shard from start to end', async () => {
    const name = NAMES[5] as string;
    const whole = model[name] as Uint8Array;
    const damaged = Uint8Array.from(whole);
    damaged[whole.length - 5] = 1 ^ (whole[whole.length - 5] as number);
    const oid = createHash('sha256').update(whole).digest('hex');
    server.storage.fault = (asked, response) => asked.path.endsWith(oid) && sendFile(asked, response, damaged);
    const run = open();
    const { files } = run;
    for (const command of [() => streamCheckpoint(run, nullOutput()), () => checkWeights(run)]) {
      await expect(command()).rejects.toThrow(errors.DamagedDownloadError);
      await expect(command()).rejects.toThrow(`${LOCATION}/${name} arrived damaged: its hash is ${oid}`);
    }
    server.storage.fault = undefined;
    await streamCheckpoint(run, nullOutput());
    await files.close();
  });

  test('a shard that differs from the list is refused', async () => {
    const { folder, files } = open();
    const range = { file: `${folder}/${NAMES[5]}`, start: 100, end: 200 };
    for (const headers of [{ 'x-linked-size': '5' }, { 'x-repo-commit': NEW }, { 'x-linked-etag': '"0123"' }]) {
      server.hub.fault = ({ path }, response) =>
        path.includes('/resolve/') && refuse(response, 302, { ...headers, location: `${server.storage.url}/x` });
      await expect(files.readRange(range)).rejects.toThrow(errors.SourceChangedError);
    }
  });
});
