import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterEach, expect, test, vi } from 'vitest';
import { CLI, TINY_MODEL } from '../../fixtures/paths.js';
import { type Service, startService } from '../../fixtures/services.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { byteTeller, LINE_INTERVAL_MS } from './tell.js';

const root = temporaryFolder();
const services: Service[] = [];
afterEach(async () => {
  for (const service of services.splice(0)) await service.stop();
  vi.useRealTimers();
});

const start = async (...args: string[]): Promise<Service> => {
  const service = await startService(args);
  services.push(service);
  return service;
};

const run = (...args: string[]) => spawn(process.execPath, [CLI, ...args], { cwd: root });

/** JSON lines as objects. */
const events = (lines: string | readonly string[]) =>
  (typeof lines === 'string' ? lines.trim().split('\n') : lines).map((line) => JSON.parse(line));

test('serve --json tells where it listens, who comes, and who is turned away, a line each', async () => {
  const served = await start('serve', TINY_MODEL, '--json');
  const reader = run('inspect', served.url, '--json');
  expect(JSON.parse(await text(reader.stdout)).family).toBe('Qwen3-MoE');
  await served.line(/is done/);
  const stranger = run('compress', TINY_MODEL, 'x', '--workers', served.url, '--steps', '1', '--layers', '0');
  await once(stranger, 'exit');
  await served.line(/"problem"/);
  expect(events(served.lines)).toEqual([
    { event: 'listening', url: served.url },
    { event: 'log', message: expect.stringContaining(` reads ${TINY_MODEL}`) },
    { event: 'log', message: expect.stringContaining(' is done') },
    { event: 'problem', error: 'WrongServiceError', message: expect.stringContaining('is for "worker"') },
  ]);
});

test('worker --json tells which group it fits', async () => {
  const worker = await start('worker', '--json', '--threads', '1');
  const flags = ['--steps', '1', '--layers', '0', '--bases', '8'];
  const [code] = await once(run('compress', TINY_MODEL, 'fitted', '--workers', worker.url, ...flags), 'exit');
  expect(code).toBe(0);
  await worker.line(/up_proj/);
  expect(events(worker.lines)).toContainEqual({ event: 'log', message: expect.stringMatching(/: layer 0 up_proj/) });
});

test('stream --json and receive --json tell what was sent and that it is whole', async () => {
  const folder = join(root, 'received');
  const receiver = await start('receive', folder, '--json');
  const told = events(await text(run('stream', TINY_MODEL, receiver.url, '--json').stdout));
  expect(told).toEqual([{ event: 'done', to: receiver.url, bytes: expect.any(Number) }]);
  await receiver.line(/"done"/);
  expect(events(receiver.lines).at(-1)).toEqual({ event: 'done', folder });
  expect(existsSync(join(folder, 'config.json'))).toBe(true);
});

test('through a pipe, stream --json tells on stderr, for stdout is the pipe', async () => {
  const [sender, receiver] = [run('stream', TINY_MODEL, '--json'), run('receive', 'piped', '-', '--json')];
  sender.stdout.pipe(receiver.stdin);
  const [sent, received] = await Promise.all([text(sender.stderr), text(receiver.stdout)]);
  expect(events(sent)).toEqual([{ event: 'done', to: '-', bytes: expect.any(Number) }]);
  expect(events(received)).toEqual([{ event: 'done', folder: 'piped' }]);
  expect(existsSync(join(root, 'piped', 'config.json'))).toBe(true);
});

test('bytes are told every ten seconds, not with each piece', () => {
  vi.useFakeTimers({ toFake: ['performance'] });
  const told: unknown[] = [];
  const passed = byteTeller((event, sentence) => told.push([event, sentence]), 'sent');
  for (let piece = 1; piece <= 4; piece++) {
    vi.advanceTimersByTime(LINE_INTERVAL_MS * 0.6);
    passed(piece * 1024);
  }
  expect(told).toEqual([
    [{ event: 'progress', bytes: 2048 }, '  2.0 KiB sent'],
    [{ event: 'progress', bytes: 4096 }, '  4.0 KiB sent'],
  ]);
});
