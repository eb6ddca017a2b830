/** Answers in odd pieces, and answers that these connections leave to `node:http`. */
import { once } from 'node:events';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { openBulkConnection } from './bulk-connection.js';
import { WebClient } from './web-client.js';

/** A server that sends these pieces for each request, and counts its connections. */
async function scripted(pieces: readonly string[], end = false) {
  const sockets: Socket[] = [];
  const requests: string[] = [];
  const server = createServer((socket) => {
    sockets.push(socket.on('error', () => {}));
    socket.on('data', async (text) => {
      requests.push(String(text));
      for (const piece of pieces) {
        socket.write(piece);
        await sleep(5);
      }
      if (end) socket.end();
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/a%20b?c=1`);
  const close = (): void => {
    for (const socket of sockets) socket.destroy();
    server.close();
  };
  return { url, sockets, requests, close };
}

async function bodyOf(answer: { pour(onChunk: (chunk: Uint8Array) => void): Promise<void> }): Promise<string> {
  let text = '';
  await answer.pour((chunk) => {
    text += Buffer.from(chunk).toString();
  });
  return text;
}

test('an answer may come in any pieces, after informational ones, and the connection is used again', async () => {
  const server = await scripted([
    'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 20',
    '6 OK\r\nConTent-Length:  7 \r\nA: 1\r\nA: 2\r\n',
    '\r\nab',
    'cdefg',
  ]);
  const connection = openBulkConnection(server.url);
  for (let request = 0; request < 2; request++) {
    const answer = await connection.get(server.url, { range: 'bytes=0-6' });
    expect(answer).toMatchObject({ status: 206, length: 7, headers: { 'content-length': '7', a: '1, 2' } });
    expect(await bodyOf(answer)).toBe('abcdefg');
    expect(connection.reusable).toBe(true);
  }
  expect(server.sockets).toHaveLength(1);
  expect(server.requests[0]).toBe(`GET /a%20b?c=1 HTTP/1.1\r\nhost: ${server.url.host}\r\nrange: bytes=0-6\r\n\r\n`);
  connection.destroy();
  server.close();
});

test.each([
  ['says so', 'HTTP/1.1 206 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab'],
  ['speaks HTTP/1.0', 'HTTP/1.0 206 OK\r\nContent-Length: 2\r\n\r\nab'],
  ['sends more than it announces', 'HTTP/1.1 206 OK\r\nContent-Length: 2\r\n\r\nabc'],
])('a connection whose server %s is not used again', async (_, text) => {
  const server = await scripted([text]);
  const connection = openBulkConnection(server.url);
  expect(await bodyOf(await connection.get(server.url, {}))).toBe('ab');
  expect(connection.reusable).toBe(false);
  connection.destroy();
  server.close();
});

test.each([
  ['no HTTP', 'SSH-2.0\r\n\r\n', 'not HTTP/1.1'],
  ['a damaged header', 'HTTP/1.1 206 OK\r\nno colon\r\n\r\n', 'damaged header'],
  ['endless headers', `HTTP/1.1 206 OK\r\nA: ${'a'.repeat(70_000)}`, 'too long'],
  ['a part of a head', 'HTTP/1.1 206', 'was cut'],
])('%s is an error', async (_, text, message) => {
  const server = await scripted([text], true);
  await expect(openBulkConnection(server.url).get(server.url, {})).rejects.toThrow(message);
  server.close();
});

test('a body that ends early is an error', async () => {
  const server = await scripted(['HTTP/1.1 206 OK\r\nContent-Length: 3\r\n\r\nab'], true);
  const answer = await openBulkConnection(server.url).get(server.url, {});
  await expect(bodyOf(answer)).rejects.toThrow('was cut');
  server.close();
});

test('two lengths, or none, are no length', async () => {
  for (const lines of [
    'Content-Length: 2\r\nContent-Length: 3',
    'Transfer-Encoding: chunked\r\nContent-Length: 2',
    'A: b',
  ]) {
    const server = await scripted([`HTTP/1.1 206 OK\r\n${lines}\r\n\r\n`]);
    const connection = openBulkConnection(server.url);
    expect((await connection.get(server.url, {})).length).toBeUndefined();
    connection.destroy();
    server.close();
  }
});

test('no header can hold another one', async () => {
  const connection = openBulkConnection(new URL('http://127.0.0.1:1'));
  await expect(connection.get(new URL('http://127.0.0.1:1'), { a: 'b\r\nc: d' })).rejects.toThrow(TypeError);
  connection.destroy();
});

test('an answer in chunks is read through node:http, and the next ones too', async () => {
  const server = await scripted(['HTTP/1.1 206 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n']);
  const client = new WebClient(5000);
  for (let request = 0; request < 2; request++) {
    const wanted = { method: 'GET', url: server.url.href, headers: {}, bulk: true } as const;
    expect(await client.exchange(wanted, bodyOf)).toBe('ab');
  }
  expect(server.requests).toHaveLength(3);
  client.close();
  server.close();
});
