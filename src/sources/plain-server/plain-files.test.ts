/** Checkpoints on plain file servers, which do not list their files. */
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { CLI, TEST_CERTIFICATE, TEST_KEY, TINY_MODEL } from '../../../fixtures/paths.js';
import { refuse, sendFile, startWebServer, type WebServer } from '../../../fixtures/web-server.js';
import { type Checkpoint, openCheckpoint } from '../../checkpoint/open-checkpoint.js';
import { listSideFiles } from '../../checkpoint/side-files.js';
import * as errors from '../../errors.js';
import { publicLocation } from '../../location.js';
import { plainFiles } from './plain-files.js';

const TIMING = { stallMs: 5000, firstWaitMs: 1, mostWaitMs: 5, patienceMs: 200, firstPatienceMs: 200 };
const text = (value: unknown): Uint8Array =>
  new TextEncoder().encode(typeof value === 'string' ? value : JSON.stringify(value));
const model = Object.fromEntries(
  readdirSync(TINY_MODEL)
    .filter((name) => name !== 'reference.json')
    .map((name) => [name, new Uint8Array(readFileSync(join(TINY_MODEL, name)))]),
);

let server: WebServer;
let files: Record<string, Uint8Array>;
let etag: string;
beforeAll(async () => {
  server = await startWebServer((asked, response) => {
    const bytes = files[asked.path.replace('/models/tiny model/', '')];
    return bytes ? sendFile(asked, response, bytes, { etag }) : refuse(response, 404);
  });
});
beforeEach(() => {
  [files, etag, server.fault, server.sent] = [{ ...model }, '"1"', undefined, 0];
  server.asked.length = 0;
});
afterAll(() => server.close());

const open = (user = '', query = ''): Promise<Checkpoint> => {
  const location = `${server.url.replace('//', `//${user}`)}/models/tiny model${query}`;
  return openCheckpoint({
    folder: publicLocation(location),
    files: plainFiles(location, { web: { timing: TIMING } }),
  });
};

describe('a checkpoint on a file server', () => {
  test('is found by the names that its index and its configs have, and by the usual ones', async () => {
    files['config.json'] = text({
      ...JSON.parse(new TextDecoder().decode(model['config.json'])),
      auto_map: { AutoConfig: 'configuration_x.Config', AutoModel: 'other/repo--modeling_y.Model' },
    });
    files['configuration_x.py'] = text('from .helpers_x import a\nfrom .gone import b\n');
    files['helpers_x.py'] = text('a = 1\n');
    files['unknown.py'] = text('b = 1\n');
    const checkpoint = await open();
    expect(checkpoint.tensors.size).toBe(423);
    expect((await checkpoint.files.list(checkpoint.folder)).map(({ path }) => path)).toEqual(
      [...Object.keys(model), 'configuration_x.py', 'helpers_x.py'].sort(),
    );
    expect((await listSideFiles(checkpoint)).map(({ target }) => target)).toContain('helpers_x.py');
    expect(server.sent).toBeLessThan(1_100_000);
  });

  test('may be one file without an index', async () => {
    files = {
      'config.json': files['config.json'] as Uint8Array,
      'model.safetensors': files['model-00001-of-00003.safetensors'] as Uint8Array,
    };
    expect((await open()).shards).toMatchObject([{ path: `${server.url}/models/tiny model/model.safetensors` }]);
  });

  test('may be a result, whose manifest lists its files', async () => {
    files['mobe.manifest.json'] = text('{\n"files": [\n{"file": "special \\"x\\".json", "parts": []}]}');
    files['special "x".json'] = text('{}');
    const checkpoint = await open();
    expect((await checkpoint.files.list(checkpoint.folder)).map(({ path }) => path)).toContain('special "x".json');
  });

  test('may be on a server that answers every address with a page, or HEAD with nothing', async () => {
    server.fault = (asked, response) => {
      if (asked.method === 'HEAD') return refuse(response, 405);
      if (files[asked.path.split('/').at(-1) ?? '']) return false;
      return sendFile(asked, response, text('<html>'), { 'content-type': 'text/html' });
    };
    expect((await open()).tensors.size).toBe(423);
  });

  test('lacks a shard: the message names it', async () => {
    delete files['model-00002-of-00003.safetensors'];
    await expect(open()).rejects.toThrow(/tiny model\/model-00002-of-00003.safetensors is missing/);
  });

  test('is not there', async () => {
    files = {};
    await expect(open()).rejects.toThrow(/tiny model is not a checkpoint: it has no config.json/);
  });

  test('changes: reading stops, and a look at the end finds it', async () => {
    const checkpoint = await open();
    const file = checkpoint.shards[0]?.path as string;
    await checkpoint.files.readRange({ file, start: 0, end: 10 });
    await checkpoint.files.checkUnchanged();
    etag = '"2"';
    await expect(checkpoint.files.checkUnchanged()).rejects.toThrow(errors.SourceChangedError);
    await expect(checkpoint.files.readRange({ file, start: 0, end: 10 })).rejects.toThrow(errors.SourceChangedError);
  });
});

test('an encrypted connection: the certificate must be trusted', async () => {
  const tls = { key: readFileSync(TEST_KEY), cert: readFileSync(TEST_CERTIFICATE) };
  const encrypted = await startWebServer((asked, response) => {
    const bytes = model[asked.path.slice(1)];
    return bytes ? sendFile(asked, response, bytes) : refuse(response, 404);
  }, tls);
  // Node reads this variable when it starts.
  const inspect = (trusted: string) =>
    promisify(execFile)(process.execPath, [CLI, 'inspect', encrypted.url, '--json'], {
      env: { ...process.env, NODE_EXTRA_CA_CERTS: trusted },
    });
  const [{ stdout }, refused] = await Promise.all([inspect(TEST_CERTIFICATE), inspect('').catch((it) => it)]);
  expect(JSON.parse(stdout)).toMatchObject({ folder: encrypted.url });
  expect(refused.stderr).toContain('NODE_EXTRA_CA_CERTS');
  const ranges = encrypted.asked.filter(({ path, range }) => path.endsWith('.safetensors') && range !== undefined);
  expect(ranges.map(({ range }) => range)).toEqual(Array(3).fill('bytes=0-196607'));
  await encrypted.close();
});

describe('secrets of an address', () => {
  const basic = `Basic ${Buffer.from('me:pass@word').toString('base64')}`;

  test('a password is sent as a header, a query with each request, and neither is in a name', async () => {
    server.fault = ({ authorization, query }, response) =>
      (authorization !== basic || query.get('sig') !== 'hidden') && refuse(response, 401);
    const checkpoint = await open('me:pass%40word@', '/?sig=hidden');
    expect(checkpoint.folder).toBe(`${server.url}/models/tiny model`);
    for (const part of ['me:pass', 'pass@word', 'hidden'])
      expect(JSON.stringify([checkpoint.shards, checkpoint.notes])).not.toContain(part);
    const error = await open('me:wrong-pass@', '?sig=hidden').catch((it) => it);
    expect(error).toBeInstanceOf(errors.BadCredentialsError);
    expect(error.message + error.stack).not.toMatch(/wrong-pass|hidden/);
    await expect(open()).rejects.toThrow('https://user:password@host/path/');
  });

  test.each([
    ['https://a:b@host/c/?d#e', 'https://host/c'],
    ['http://token@host', 'http://host'],
    ['wss://a:b@host:1/', 'wss://host:1'],
    ['hf://org/name@v1', 'hf://org/name@v1'],
    ['ftp://a:b@host/c', 'ftp://host/c'],
    ['s3://bucket/a@b:c@d', 's3://bucket/a@b:c@d'],
  ])('%s is shown as %s', (location, shown) => expect(publicLocation(location)).toBe(shown));
});
