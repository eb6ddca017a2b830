import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import WebSocket, { WebSocketServer } from 'ws';
import { TEST_CERTIFICATE, TEST_KEY } from '../../fixtures/paths.js';
import {
  after,
  echo,
  isEchoed,
  rawFrame,
  rawHello,
  startClient,
  startRawPeer,
  startServer,
} from '../../fixtures/peers.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import {
  CertificateError,
  ListenError,
  PeerUrlError,
  ProtocolError,
  ProtocolVersionError,
  RemoteError,
  TokenError,
  TokenRequiredError,
  UnauthorisedError,
  WrongServiceError,
} from '../errors.js';
import { connect } from './connect.js';
import { PROTOCOL_VERSION } from './limits.js';
import { listen } from './listen.js';
import { isLoopback } from './loopback.js';
import { isAuthorised, readToken, TOKEN_VARIABLE } from './token.js';

const token = 'a-token-of-some-length';
const tls = { key: readFileSync(TEST_KEY), cert: readFileSync(TEST_CERTIFICATE) };

const hasIPv6 = Object.values(networkInterfaces()).some((all) => all?.some(({ address }) => address === '::1'));
test.skipIf(!hasIPv6).each(['::1', '[::1]'])('on %s, the URL it gives is one to connect to', async (host) => {
  const server = await listen({ host, port: 0, service: 'test' }, echo);
  expect(server.url).toMatch(/^ws:\/\/\[::1\]:\d+\/$/);
  expect(await isEchoed(await startClient(server.url), 1)).toBe(true);
  await server.close();
});

describe('with a token', () => {
  test('its holder is served', async () => {
    const server = await startServer(echo, { token });
    expect(await isEchoed(await startClient(server.url, { token }), 1)).toBe(true);
  });

  test.each([
    ['no token', undefined],
    ['a wrong token', 'a-token-of-some-lengtH'],
    ['a longer token', `${token}s`],
  ])('whoever has %s is turned away at once, and others are not affected', async (_, wrong) => {
    const server = await startServer(echo, { token });
    const other = await startClient(server.url, { token });
    await expect(startClient(server.url, { token: wrong, connectTimeoutMs: 60_000 })).rejects.toBeInstanceOf(
      UnauthorisedError,
    );
    expect(server.problems[0]).toBeInstanceOf(UnauthorisedError);
    expect(await isEchoed(other, 1)).toBe(true);
  });

  test('the token is compared whole', () => {
    expect(isAuthorised(`Bearer ${token}`, token)).toBe(true);
    for (const header of [undefined, '', 'Bearer ', token, `bearer ${token}`, `Bearer ${token} `, `Basic ${token}`])
      expect(isAuthorised(header, token)).toBe(false);
  });
});

describe('a token is read', () => {
  const folder = temporaryFolder();
  const file = (name: string, text: string): string => {
    writeFileSync(join(folder, name), text);
    return join(folder, name);
  };

  test('from a file, without the line end an editor adds', async () => {
    expect(await readToken(file('good', `${token}\n`), {})).toBe(token);
  });

  test('from the environment where no file is given, and the file goes first', async () => {
    expect(await readToken(undefined, { [TOKEN_VARIABLE]: token })).toBe(token);
    expect(await readToken(file('good', token), { [TOKEN_VARIABLE]: 'another-token-long-enough' })).toBe(token);
    expect(await readToken(undefined, {})).toBeUndefined();
  });

  test.each([
    ['short', 'secret', /fewer than 16/],
    ['empty', '', /fewer than 16/],
    ['long', 'x'.repeat(2000), /more than 1024/],
    ['multiline', `${token}\n${token}`, /characters other than/],
  ])('not when it is %s', async (name, text, message) => {
    await expect(readToken(file(name, text), {})).rejects.toThrow(TokenError);
    await expect(readToken(file(name, text), {})).rejects.toThrow(message);
  });

  test('not from a file that is not there', async () => {
    await expect(readToken(join(folder, 'none'), {})).rejects.toBeInstanceOf(TokenError);
  });
});

describe('beyond this machine', () => {
  test.each(['0.0.0.0', '::', '192.168.1.7', 'example.org', '127.0.0.1.example.org'])(
    'nobody listens on %s without a token',
    async (host) => {
      await expect(listen({ host, port: 0, service: 'test' }, echo)).rejects.toBeInstanceOf(TokenRequiredError);
    },
  );

  test('with a token one does', async () => {
    const server = await startServer(echo, { host: '0.0.0.0', token });
    expect(await isEchoed(await startClient(server.url, { token }), 1)).toBe(true);
  });

  test.each(['127.0.0.1', '127.8.9.1', '::1', '[::1]', 'localhost', '::ffff:127.0.0.1'])('%s is within', (host) => {
    expect(isLoopback(host)).toBe(true);
  });
});

test('a web page cannot connect, though its browser is on this machine', async () => {
  const server = await startServer(echo);
  const ws = new WebSocket(server.url, { origin: 'https://example.org' });
  ws.on('error', () => {});
  const [, response] = await once(ws, 'unexpected-response');
  expect(response.statusCode).toBe(403);
});

test('a port that is taken is named', async () => {
  const server = await startServer(echo);
  const { port } = new URL(server.url);
  const second = listen({ host: '127.0.0.1', port: Number(port), service: 'test' }, echo);
  await expect(second).rejects.toBeInstanceOf(ListenError);
  await expect(second).rejects.toThrow(`127.0.0.1:${port}`);
});

describe('over TLS', () => {
  test('with the certificate given, everything works as without', async () => {
    const server = await startServer(echo, { tls, token });
    expect(server.url).toMatch(/^wss:/);
    const channel = await startClient(server.url, { ca: tls.cert, token, silenceTimeoutMs: 300 });
    expect(await isEchoed(channel, 1)).toBe(true);
    // The pause is longer than the silence timeout: heartbeats must also arrive through TLS.
    await new Promise((resolve) => setTimeout(resolve, 800));
    expect(await isEchoed(channel, 2)).toBe(true);
    expect(server.problems).toEqual([]);
  });

  test('a certificate nobody vouches for is refused at once', async () => {
    const server = await startServer(echo, { tls });
    await expect(startClient(server.url, { connectTimeoutMs: 60_000 })).rejects.toBeInstanceOf(CertificateError);
  });

  test('a certificate for another name is refused', async () => {
    const server = await startServer(echo, { tls, host: '127.0.0.2' });
    await expect(startClient(server.url, { ca: tls.cert })).rejects.toBeInstanceOf(CertificateError);
  });
});

describe('whoever connects learns', () => {
  test('that the service is another', async () => {
    const server = await startServer(echo);
    const wrong = startClient(server.url, { service: 'worker', connectTimeoutMs: 60_000 });
    await expect(wrong).rejects.toBeInstanceOf(WrongServiceError);
    await expect(wrong).rejects.toThrow('is for "test", not for "worker"');
  });

  test('which version the other side speaks', async () => {
    const server = await startServer(echo);
    const peer = await startRawPeer(server.url);
    peer.send(rawHello({ protocol: PROTOCOL_VERSION + 1 }));
    expect(await peer.expect('error')).toMatchObject({ code: 'protocol-version', wanted: PROTOCOL_VERSION });
  });

  test.each<[string, unknown, typeof ProtocolError | typeof ProtocolVersionError]>([
    ['that the server speaks another version', { kind: 'hello', protocol: PROTOCOL_VERSION + 1 }, ProtocolVersionError],
    ['that the server is none of ours', { hello: 'there' }, ProtocolError],
    ['that the server answers for another session', rawHello(), ProtocolError],
  ])('%s', async (_, answer, errorClass) => {
    const sockets = new WebSocketServer({ host: '127.0.0.1', port: 0 });
    after(() => sockets.close());
    await once(sockets, 'listening');
    sockets.on('connection', (ws) => ws.send(rawFrame(answer)));
    const url = `ws://127.0.0.1:${(sockets.address() as { port: number }).port}/`;
    await expect(startClient(url, { connectTimeoutMs: 60_000 })).rejects.toBeInstanceOf(errorClass);
  });

  test('why the other side gave up', async () => {
    const server = await startServer(async (channel) => {
      await channel.receive();
      throw new ListenError('a disk', 'it is full');
    });
    const channel = await startClient(server.url);
    await channel.send({ kind: 'event', value: 1 });
    const answer = channel.receive();
    await expect(answer).rejects.toBeInstanceOf(RemoteError);
    await expect(answer).rejects.toThrow(/it is full/);
  });

  test.each(['http://127.0.0.1:1/', 'no url', 'ws://user:secret@127.0.0.1:1/'])(
    'that %s is no address',
    async (url) => {
      const failure = connect(url, { service: 'test' });
      await expect(failure).rejects.toBeInstanceOf(PeerUrlError);
      await expect(failure).rejects.not.toThrow(/secret/);
    },
  );
});
