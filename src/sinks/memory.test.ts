/** Files are sent in bounded memory, whatever their size and that of their parts. */
import { execFile } from 'node:child_process';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { startWebServer, type WebServer } from '../../fixtures/web-server.js';

const SEND = fileURLToPath(new URL('../../fixtures/send-file.js', import.meta.url));
const MiB = 2 ** 20;
/** Four parts with two pieces of half a MiB each, their copies in sockets, and what the allocator keeps. */
const MOST_GROWTH = 48 * MiB;
const root = temporaryFolder();
let server: WebServer;
let received = 0;
beforeAll(async () => {
  server = await startWebServer(async (asked, response) => {
    await asked.drain((bytes) => {
      received += bytes;
    });
    response.setHeader('etag', '"1"');
    const xml = asked.query.has('uploads') ? '<UploadId>1</UploadId>' : '<ETag>"1"</ETag>';
    response.end(asked.method === 'POST' ? xml : '');
    return true as const;
  });
});
afterAll(() => server.close());

test.each([
  ['in parts of 8 MiB', 256 * MiB, 8 * MiB],
  ['in parts of 64 MiB', 256 * MiB, 64 * MiB],
  ['in one piece', 256 * MiB, 256 * MiB],
])(
  '%s',
  async (_, bytes, partBytes) => {
    const file = join(root, 'file');
    writeFileSync(file, '');
    truncateSync(file, 2 * 256 * MiB);
    received = 0;
    const { stdout } = await promisify(execFile)(process.execPath, [
      SEND,
      server.url,
      file,
      `${bytes}`,
      `${partBytes}`,
    ]);
    expect(received).toBeGreaterThanOrEqual(bytes);
    expect(Number(stdout)).toBeLessThan(MOST_GROWTH);
  },
  120_000,
);
