/** Faults of servers: the reader asks again or says what is wrong, and lets no wrong byte through. */
import type { ServerResponse } from 'node:http';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  type Asked,
  type Fault,
  refuse,
  sendFile,
  sometimes,
  startWebServer,
  type WebServer,
} from '../../../fixtures/web-server.js';
import * as errors from '../../errors.js';
import { fetchRange, type Versions } from './fetch-range.js';
import { toldWait } from './try-again.js';
import { openWeb } from './web.js';
import type { WebTiming } from './web-options.js';
import type { WebPlace } from './web-place.js';

const TIMING = { stallMs: 5000, firstWaitMs: 1, mostWaitMs: 20, patienceMs: 250, firstPatienceMs: 250 };
/** The bytes of the file are a function of their offset. */
const BYTES = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 7 + (i >> 8)) & 255);
const LARGE = new Uint8Array(33 * 1024 * 1024);
const HEADERS = { etag: '"v1"' };

let server: WebServer;
beforeAll(async () => {
  server = await startWebServer((asked, response) =>
    sendFile(asked, response, asked.path === '/large' ? LARGE : BYTES, HEADERS),
  );
});
beforeEach(() => {
  server.fault = undefined;
  server.asked.length = 0;
  server.sent = 0;
});
afterAll(() => server.close());

const [FIRST, LENGTH] = [1000, 200_000];
async function read(
  path = 'file',
  versions: Versions = new Map(),
  timing: Partial<WebTiming> = {},
): Promise<Uint8Array> {
  const web = openWeb('the server', 'Wait.', { web: { timing: { ...TIMING, ...timing } } });
  const place: WebPlace = {
    list: async () => ({ files: [] }),
    link: async () => ({ url: `${server.url}/${path}`, headers: { authorization: 'Bearer secret' } }),
    refusal: async ({ status }) => new errors.NotThereError(path, `status ${status}`, ''),
  };
  const target = new Uint8Array(LENGTH);
  const file = { path, bytes: path === 'large' ? LARGE.length : BYTES.length, version: 0 };
  await fetchRange(web, place, versions, { file, name: `http://host/${path}` }, FIRST, target);
  return target;
}
const expected = BYTES.subarray(FIRST, FIRST + LENGTH);

/** Sends the right header with a body that is cut. */
const cutAfter =
  (bytes: number): Fault =>
  ({ range }, response) => {
    const first = Number(/\d+/.exec(range ?? '')?.[0]);
    const last = FIRST + LENGTH - 1;
    response.writeHead(206, {
      ...HEADERS,
      'content-range': `bytes ${first}-${last}/${BYTES.length}`,
      'content-length': last - first + 1,
    });
    response.write(BYTES.subarray(first, Math.min(first + bytes, last + 1)));
    setTimeout(() => response.destroy(), 10);
    return true;
  };
const answers =
  (status: number, headers: Record<string, string | number>, body = expected): Fault =>
  (_, response) => {
    response.writeHead(status, { 'content-length': body.length, ...headers });
    response.write(body);
    response.end();
    return true;
  };
const RANGE = `bytes ${FIRST}-${FIRST + LENGTH - 1}/${BYTES.length}`;
const silent: Fault = () => true;
/** Sends a part and then nothing. */
const stalls: Fault = (_, response) => {
  response.writeHead(206, { 'content-range': RANGE, 'content-length': LENGTH });
  response.write(expected.subarray(0, 50_000));
  return true;
};

describe('a fault that passes is overcome, and each byte is asked for once', () => {
  test.each<[string, number, Fault]>([
    ['no fault', 0, silent],
    ...[429, 500, 502, 503, 504, 408].map((status): [string, number, Fault] => [
      `status ${status}`,
      2,
      (_, response) => refuse(response, status),
    ]),
    ['503 with Retry-After', 1, (_, response) => refuse(response, 503, { 'retry-after': '0' })],
    ['a connection that is cut at once', 2, (_, response) => Boolean(response.destroy())],
    ['a body that is cut', 3, cutAfter(60_000)],
    ['another range', 1, answers(206, { 'content-range': `bytes 0-${LENGTH - 1}/${BYTES.length}` })],
    ['no Content-Range', 1, answers(206, {})],
    ['a shorter body than announced', 1, answers(206, { 'content-range': RANGE }, expected.subarray(1))],
    ['an encoding', 1, answers(206, { 'content-range': RANGE, 'content-encoding': 'gzip' })],
  ])('%s', async (_, times, fault) => {
    server.fault = sometimes(times, () => true, fault);
    expect(Buffer.compare(await read(), expected)).toBe(0);
    expect(server.asked).toHaveLength(times + 1);
  });

  test('a part of the range that is announced as such is continued', async () => {
    server.fault = sometimes(
      1,
      () => true,
      answers(206, { 'content-range': `bytes ${FIRST}-${FIRST + 9}/${BYTES.length}` }, expected.subarray(0, 10)),
    );
    expect(Buffer.compare(await read(), expected)).toBe(0);
    expect(server.asked.map(({ range }) => range)).toEqual([`bytes=1000-200999`, `bytes=1010-200999`]);
  });

  test('a body that is cut is continued where it stopped', async () => {
    server.fault = sometimes(1, () => true, cutAfter(60_000));
    await read();
    expect(server.asked[1]?.range).toBe(`bytes=${FIRST + 60_000}-${FIRST + LENGTH - 1}`);
  });
});

test.each([
  ['says nothing', silent],
  ['stops in the body', stalls],
])('a server that %s is left alone after a while, and asked again', async (_, fault) => {
  server.fault = sometimes(1, () => true, fault);
  expect(Buffer.compare(await read('file', new Map(), { stallMs: 300 }), expected)).toBe(0);
});

test('a server that stays silent is told', async () => {
  server.fault = silent;
  await expect(read('file', new Map(), { stallMs: 100 })).rejects.toThrow(/nothing came for 0.1 s/);
});

describe('a fault that stays is told', () => {
  test.each<[string, Fault, new (...args: never[]) => Error, RegExp]>([
    [
      'server error',
      (_, response) => refuse(response, 500),
      errors.ServerFailedError,
      /times without progress\): .*status 500/,
    ],
    ['cut connections', (_, response) => Boolean(response.destroy()), errors.ServerFailedError, /was cut/],
    ['limit', (_, response) => refuse(response, 429), errors.RateLimitedError, /429/],
    [
      'a long wait',
      (_, response) => refuse(response, 429, { 'retry-after': '99999' }),
      errors.RateLimitedError,
      /99999 s/,
    ],
    ['missing file', (_, response) => refuse(response, 404), errors.NotThereError, /404/],
    ['no such range', (_, response) => refuse(response, 416), errors.ReadError, /416/],
    [
      'a shorter file',
      (_, response) => refuse(response, 416, { 'content-range': 'bytes */9' }),
      errors.SourceChangedError,
      /300000 bytes, now 9/,
    ],
    [
      'another length',
      answers(206, { 'content-range': `bytes 1000-200999/300001` }),
      errors.SourceChangedError,
      /now 300001/,
    ],
    ['another length of a whole file', answers(200, {}), errors.SourceChangedError, /now 200000/],
    ['wrong ranges', answers(206, { 'content-range': 'bytes 5-9/300000' }), errors.ServerFailedError, /another range/],
  ])('%s', async (_, fault, kind, message) => {
    server.fault = fault;
    const error = await read().catch((it) => it);
    expect(error).toBeInstanceOf(kind);
    expect(error.message).toMatch(message);
    expect(error.message).not.toContain('secret');
  });

  test('a file that changes between two reads', async () => {
    const versions: Versions = new Map();
    await read('file', versions);
    server.fault = answers(206, { 'content-range': RANGE, etag: '"v2"' });
    await expect(read('file', versions)).rejects.toThrow(
      'http://host/file changed while it was being read (its ETag was "v1", now "v2")',
    );
  });

  test('a server without ranges: a small file is read whole, of a large one no body is read', async () => {
    server.fault = (asked, response) =>
      sendFile({ ...asked, range: undefined }, response, asked.path === '/large' ? LARGE : BYTES);
    expect(Buffer.compare(await read(), expected)).toBe(0);
    await expect(read('large')).rejects.toThrow(errors.NoRangesError);
    server.fault = sometimes(1, () => true, server.fault);
    expect(await read('large')).toEqual(LARGE.subarray(0, LENGTH));
  });
});

describe('a redirect', () => {
  const moved = (location: string): Fault =>
    sometimes(
      1,
      ({ path }) => path === '/file',
      (_, response) => refuse(response, 302, { location }),
    );

  test('to another host gets no credentials', async () => {
    const got: Asked[] = [];
    const other = await startWebServer((asked: Asked, response: ServerResponse) => {
      got.push(asked);
      return sendFile(asked, response, BYTES);
    });
    server.fault = moved(`${other.url}/elsewhere`);
    expect(Buffer.compare(await read(), expected)).toBe(0);
    expect(server.asked[0]?.authorization).toBe('Bearer secret');
    expect(got).toMatchObject([{ path: '/elsewhere', authorization: undefined }]);
    await other.close();
  });

  test('on the same host keeps them', async () => {
    server.fault = moved('/b');
    await read();
    expect(server.asked.map(({ authorization }) => authorization)).toEqual(['Bearer secret', 'Bearer secret']);
  });

  test('in a circle ends', async () => {
    server.fault = (_, response) => refuse(response, 302, { location: '/file' });
    await expect(read()).rejects.toThrow(errors.BadRedirectError);
  });
});

test.each<[Record<string, string>, number | undefined]>([
  [{ 'retry-after': '7' }, 7000],
  [{ ratelimit: '"api";r=0;t=55' }, 55_000],
  [{ ratelimit: '"api";r=3;t=55, "resolvers";r=0;t=9' }, 9000],
  [{ ratelimit: '"api";r=10;t=55' }, undefined],
  [{}, undefined],
])('the wait that %j asks for is %j ms', (headers, ms) => expect(toldWait(headers)).toBe(ms));

test('the wait until a date', () => {
  const wait = toldWait({ 'retry-after': new Date(Date.now() + 5000).toUTCString() });
  expect(wait).toBeGreaterThan(3000);
  expect(wait).toBeLessThan(5001);
});
