/** Models that are read from the hub and from a file server: the same bytes as from a folder, and runs that are interrupted. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { type HubServer, startHub } from '../../fixtures/hub-server.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { refuse, sendFile, startWebServer, type WebServer } from '../../fixtures/web-server.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import type { Progress } from '../run-options.js';
import { compress } from './compress.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const OPTIONS: CompressOptions = { bases: 2, steps: 6, shardSize: 200_000, threads: 1 };
const [FIRST, SECOND] = ['1'.repeat(40), '2'.repeat(40)];
const HUB = 'hf://org/model';

let hub: HubServer;
let server: WebServer;
const main = { main: FIRST };
const { HF_ENDPOINT, HF_HOME } = process.env;

beforeAll(async () => {
  const sizes = { layers: 2, experts: 4, rows: 32, cols: 256, shardBytes: 250_000 };
  await generateCheckpoint(at('model'), sizes);
  await compress(at('model'), at('whole'), OPTIONS);
  const files = Object.fromEntries(
    readdirSync(at('model')).map((name) => [name, new Uint8Array(readFileSync(at('model', name)))]),
  );
  const config = new TextEncoder().encode(`${new TextDecoder().decode(files['config.json'])}\n`);
  hub = await startHub({
    'org/model': { commits: { [FIRST]: files, [SECOND]: { ...files, 'config.json': config } }, refs: main },
  });
  process.env.HF_ENDPOINT = hub.hub.url;
  process.env.HF_HOME = at('hf');
  server = await startWebServer((asked, response) => {
    const bytes = files[asked.path.replace('/model/', '')];
    return bytes ? sendFile(asked, response, bytes, { etag: '"1"' }) : refuse(response, 404);
  });
});
beforeEach(() => {
  main.main = FIRST;
  for (const part of [hub.hub, hub.storage, server]) [part.fault, part.sent, part.asked.length] = [undefined, 0, 0];
});
afterAll(async () => {
  Object.assign(process.env, { HF_ENDPOINT, HF_HOME });
  for (const name of ['HF_ENDPOINT', 'HF_HOME']) if (process.env[name] === 'undefined') delete process.env[name];
  await hub.close();
  await server.close();
});

/** Compares a result with that of the folder. The record has timings; the card names the model, and the manifest has the card's hash. */
function expectSame(out: string): void {
  const names = readdirSync(at('whole'));
  expect(readdirSync(out)).toEqual(names);
  for (const name of names.filter((it) => !['mobe.json', 'README.md', 'mobe.manifest.json'].includes(it)))
    expect(Buffer.compare(readFileSync(join(out, name)), readFileSync(at('whole', name)))).toBe(0);
}

/** Stops a run when so many groups are finished. */
async function interrupted(model: string, out: string, groups: number): Promise<void> {
  const controller = new AbortController();
  let finished = 0;
  const onProgress = ({ kind }: Progress): void => {
    if (kind === 'group' && ++finished === groups) controller.abort();
  };
  await expect(compress(model, out, OPTIONS, { onProgress, signal: controller.signal })).rejects.toThrow(
    errors.InterruptedError,
  );
}

test.each(['the hub', 'a file server'])(
  'a model on %s gives the same bytes as its folder, and is read once',
  async (place) => {
    const out = at(`from ${place}`);
    const model = place === 'the hub' ? HUB : `${server.url}/model/`;
    await compress(model, out, OPTIONS);
    expectSame(out);
    const shards = readdirSync(at('model')).filter((name) => name.endsWith('.safetensors'));
    const bytes = shards.reduce((sum, name) => sum + readFileSync(at('model', name)).byteLength, 0);
    // Beside each byte once: the headers' requests and the samples of fingerprints.
    const more = shards.length * (192 * 1024 + 16 * 4096);
    expect(hub.hub.sent + hub.storage.sent + server.sent).toBeLessThan(bytes + more + 50_000);
    const card = readFileSync(join(out, 'README.md'), 'utf8');
    expect(card).toContain(`base_model: ${place === 'the hub' ? HUB.replace('hf://', '') : 'model'}\n`);
    if (place === 'the hub') expect((await verify(model, out)).problems).toEqual([]);
  },
);

test('an interrupted run goes on at its own commit, never at another, and reads only what is missing', async () => {
  await interrupted(HUB, at('resumed'), 2);
  main.main = SECOND;
  const error = await compress(HUB, at('resumed'), OPTIONS).catch((it) => it);
  expect(error).toBeInstanceOf(errors.UnfinishedRunError);
  expect(error.message).toContain(FIRST);
  await expect(compress(`${server.url}/model`, at('resumed'), OPTIONS)).rejects.toThrow(errors.UnfinishedRunError);
  const before = hub.storage.sent;
  await compress(`${HUB}@${FIRST}`, at('resumed'), OPTIONS);
  expect(hub.storage.sent - before).toBeLessThan(before);
  expectSame(at('resumed'));
});

test('a storage host that fails now and then changes nothing', async () => {
  let requests = 0;
  hub.storage.fault = (_, response) => ++requests % 7 === 0 && refuse(response, 503, { 'retry-after': '0' });
  await compress(HUB, at('unsteady'), OPTIONS);
  expectSame(at('unsteady'));
});

test('access that ends during a run keeps what is finished', async () => {
  let finished = 0;
  const onProgress = ({ kind }: Progress): void => {
    if (kind === 'group' && ++finished === 2) server.fault = (_, response) => refuse(response, 403);
  };
  const failed = compress(`${server.url}/model`, at('ended'), OPTIONS, { onProgress });
  await expect(failed).rejects.toThrow(errors.NoAccessError);
  await expect(failed).rejects.toMatchObject({ kept: at('ended') });
  server.fault = undefined;
  await compress(`${server.url}/model`, at('ended'), OPTIONS);
  expectSame(at('ended'));
});
