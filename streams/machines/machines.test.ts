/** With real processes and sockets: a run over several machines gives the same bytes as a run on one. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import { CLI, TINY_MODEL } from '../../fixtures/paths.js';
import { startProxy } from '../../fixtures/peers.js';
import { type Service, startService } from '../../fixtures/services.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import { createRandom } from '../../src/linalg/random.js';
import { listen } from '../../src/transport/listen.js';
import { answerRequests, type Handler } from '../../src/transport/requests.js';
import { WORKER_SERVICE } from '../compute/worker-protocol.js';
import { compress } from '../operations/compress.js';
import { inspect } from '../operations/inspect.js';
import { plan } from '../operations/plan.js';
import { verify } from '../operations/verify.js';
import type { Progress } from '../run-options.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const QUICK: CompressOptions = { bases: 8, steps: 20, shardSize: 3e6, threads: 2 };

const running: Service[] = [];
async function start(...args: string[]): Promise<Service> {
  const service = await startService(args);
  running.push(service);
  return service;
}
afterEach(async () => {
  await Promise.all(running.splice(0).map((service) => service.stop()));
});

/** Expects the same files, except `mobe.json`, which has timings, and the manifest, which covers the model card. */
function expectSameFiles(a: string, b: string): void {
  const files = (folder: string) =>
    readdirSync(folder).filter((file) => !['mobe.json', 'mobe.manifest.json'].includes(file));
  expect(files(a)).toEqual(files(b));
  for (const file of files(a)) {
    // The model card names the source, which is a folder in one run and a URL in the other.
    const read = (folder: string) => readFileSync(join(folder, file));
    if (file !== 'README.md') expect(read(a).equals(read(b)), file).toBe(true);
  }
}

beforeAll(() => compress(TINY_MODEL, at('local'), QUICK));

describe('three processes', () => {
  test('serve, worker and receive write what one would, and all say so where it was started', async () => {
    const [source, worker, sink] = await Promise.all([
      start('serve', TINY_MODEL),
      start('worker', '--threads', '2'),
      start('receive', at('three')),
    ]);
    const seen = new Set<string>();
    const onProgress = ({ kind }: Progress) => seen.add(kind);
    const result = await compress(source.url, sink.url, QUICK, { workers: [worker.url], onProgress });
    expect(result.groups).toHaveLength(8);
    expectSameFiles(at('three'), at('local'));
    expect(seen).toEqual(new Set(['plan', 'phase', 'bytes', 'step', 'fold', 'group']));
    await sink.line(/is whole/);
    expect((await verify(source.url, at('three'))).problems).toEqual([]);
  });

  test('inspect and plan read headers over the wire', async () => {
    const { url } = await start('serve', TINY_MODEL);
    const [here, there] = [await inspect(TINY_MODEL), await inspect(url)];
    expect({ ...there, folder: '' }).toEqual({ ...here, folder: '' });
    const { groups, bytesAfter } = await plan(url, QUICK);
    expect([groups.length, bytesAfter]).toEqual([8, (await plan(TINY_MODEL, QUICK)).bytesAfter]);
  });

  test('done already, the receiver says so and nothing is computed', async () => {
    const sink = await start('receive', at('three'));
    const steps: Progress[] = [];
    const result = await compress(TINY_MODEL, sink.url, QUICK, { onProgress: (it) => steps.push(it) });
    expect(result.already).toBe(true);
    expect(steps).toEqual([]);
  });
});

test('all three connections cut at random bytes, again and again: the same bytes', THOROUGH, async () => {
  const services = await Promise.all([
    start('serve', TINY_MODEL),
    start('worker', '--threads', '2'),
    start('receive', at('cut-lines')),
  ]);
  const random = createRandom(7);
  // Some connections break in their handshake. Most break after some hundred kilobytes.
  const nextCut = (): number => (random.below(4) === 0 ? 1 + random.below(2000) : 50_000 + random.below(400_000));
  const proxies = await Promise.all(services.map(({ url }) => startProxy(url, nextCut)));
  const [source, worker, sink] = proxies.map(({ url }) => url) as [string, string, string];
  await compress(source, sink, QUICK, { workers: [worker] });
  expectSameFiles(at('cut-lines'), at('local'));
  for (const { cuts } of proxies) expect(cuts).toBeGreaterThan(10);
});

describe('a worker that is killed in the middle of a group', THOROUGH, () => {
  test.each([
    ['while it fits, another does its group', 2, 'step'],
    ['while it fits, this machine does where there is no other', 1, 'step'],
    ['while the group is written, this machine fits it again and goes on with the next expert', 1, 'fold'],
  ])('%s: the same bytes', async (_, count, kind) => {
    const workers = await Promise.all(Array.from({ length: count }, () => start('worker', '--threads', '1')));
    const out = at(`killed-${kind}-${count}`);
    const lost: string[] = [];
    let written = 0;
    const onProgress = (progress: Progress) => {
      if (progress.kind === 'lost') lost.push(progress.worker);
      if (progress.kind === 'group') written++;
      if (progress.kind === kind && written >= 1) workers[0]?.process.kill('SIGKILL');
    };
    await compress(TINY_MODEL, out, QUICK, {
      workers: workers.map(({ url }) => url),
      peers: { resumeTimeoutMs: 500 },
      onProgress,
    });
    expect(lost).toEqual([workers[0]?.url]);
    expectSameFiles(out, at('local'));
  });
});

for (const [steps, cost] of [
  [0, THOROUGH],
  [3, {}],
] as const)
  test(
    `a worker that hangs after ${steps} steps is given up, and its group is fitted here: the same bytes`,
    cost,
    async () => {
      const handlers: Record<string, Handler> = {
        facts: async () => ({ name: 'onnx-cpu', device: 'a dead end', kind: 'cpu', threads: 1 }),
        open: async () => null,
        async fit(_params, { event }) {
          for (let step = 1; step <= steps; step++)
            await event({ kind: 'step', step, steps: 20, loss: 1, rate: 1, secondsLeft: 1 });
          await new Promise(() => {});
        },
      };
      const worker = await listen({ host: '127.0.0.1', port: 0, service: WORKER_SERVICE }, (channel) =>
        answerRequests(channel, channel, handlers),
      );
      const lost: Error[] = [];
      const onProgress = (it: Progress): void => {
        if (it.kind === 'lost') lost.push(it.reason);
      };
      const out = at(`hangs-${steps}`);
      const peers = { stallTimeoutMs: 100 };
      await compress(TINY_MODEL, out, QUICK, { workers: [worker.url], peers, onProgress });
      await worker.close();
      expect(lost).toHaveLength(1);
      expect(lost[0]).toBeInstanceOf(errors.PeerStalledError);
      expectSameFiles(out, at('local'));
    },
  );

describe('stopped half-way, the same command goes on from what the receiver has:', THOROUGH, () => {
  const HALF = 4;

  /** Runs until a number of groups are finished, then calls `act`. */
  async function until(url: string, act: () => void): Promise<void> {
    let groups = 0;
    const onProgress = ({ kind }: Progress) => {
      if (kind === 'group' && ++groups === HALF) act();
    };
    const run = compress(TINY_MODEL, url, QUICK, { peers: { resumeTimeoutMs: 500 }, onProgress });
    await expect(run).rejects.toThrow(errors.PeerError);
    await expect(run).rejects.toThrow(url);
    await expect(run).rejects.toMatchObject({ kept: url });
  }

  async function finish(url: string, out: string): Promise<void> {
    const seen: string[] = [];
    const onProgress = (it: Progress) => void seen.push(it.kind === 'phase' ? it.phase : it.kind);
    const { groups } = await compress(TINY_MODEL, url, QUICK, { onProgress });
    expect(groups).toHaveLength(8);
    expect(seen).toContain('resume');
    expect(seen.filter((kind) => kind === 'group').length).toBeLessThan(8);
    expectSameFiles(out, at('local'));
    const manifest = (folder: string) => readFileSync(join(folder, 'mobe.manifest.json'));
    expect(manifest(out).equals(manifest(at('local')))).toBe(true);
  }

  test.each(['SIGINT', 'SIGKILL'] as const)('the receiver ends by %s', async (signal) => {
    const out = at(`receiver-${signal}`);
    const sink = await start('receive', out);
    const ended = once(sink.process, 'exit'); // not by `stop`, because a second signal ends it at once
    await until(sink.url, () => sink.process.kill(signal));
    await ended;
    expect(existsSync(join(out, 'config.json'))).toBe(false);
    const again = await start('receive', out);
    await finish(again.url, out);
    await again.line(/is whole/);
  });

  test.each(['SIGINT', 'SIGKILL'] as const)('the sender ends by %s, and is started again at once', async (signal) => {
    const out = at(`sender-${signal}`);
    const sink = await start('receive', out);
    const flags = ['--bases', '8', '--steps', '20', '--shard-size', '3MB', '--threads', '2'];
    const sender = spawn(process.execPath, [CLI, 'compress', TINY_MODEL, sink.url, ...flags], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    const lines = createInterface({ input: sender.stderr });
    const said: string[] = [];
    lines.on('line', (line) => {
      said.push(line);
      // Once: a second signal ends it at once.
      if (/layer 1 \w+: relative error/.test(line) && !sender.killed) sender.kill(signal);
    });
    const [code, by] = await once(sender, 'close');
    expect(signal === 'SIGKILL' ? by : code).toBe(signal === 'SIGKILL' ? 'SIGKILL' : 130);
    if (signal === 'SIGINT') expect(said.join('\n')).toContain(`is kept at ${sink.url}`);
    await finish(sink.url, out);
  });
});

test('what fails at the receiver is told with its own words, before anything is computed', async () => {
  const sink = await start('receive', TINY_MODEL);
  const run = compress(TINY_MODEL, sink.url, QUICK);
  await expect(run).rejects.toThrow('is not empty');
});

test('a worker whose memory is too small refuses the group, and the error says how much it needs', async () => {
  const worker = await start('worker', '--max-memory', '200MB');
  const run = compress(TINY_MODEL, at('never'), QUICK, { workers: [worker.url] });
  await expect(run).rejects.toThrow(errors.BudgetTooSmallError);
  await expect(run).rejects.toMatchObject({ exitCode: 2 });
  await expect(run).rejects.toThrow(worker.url);
  expect(existsSync(at('never'))).toBe(false);
});

describe('through a pipe', () => {
  /** `mobe <from> | mobe receive <out> -` */
  async function pipe(from: readonly string[], out: string): Promise<{ codes: Array<number | null>; stderr: string }> {
    const first = spawn(process.execPath, [CLI, ...from], { stdio: ['ignore', 'pipe', 'ignore'] });
    const second = spawn(process.execPath, [CLI, 'receive', out, '-'], { stdio: [first.stdout, 'ignore', 'pipe'] });
    first.stdout.destroy(); // the child has its own copy of the pipe
    let stderr = '';
    second.stderr.on('data', (text) => {
      stderr += text;
    });
    const ends = await Promise.all([once(first, 'exit'), once(second, 'exit')]);
    return { codes: ends.map(([code]) => code), stderr };
  }

  test('a checkpoint arrives as it is, every file', async () => {
    expect((await pipe(['stream', TINY_MODEL], at('copy'))).codes).toEqual([0, 0]);
    const files = readdirSync(TINY_MODEL).sort();
    expect(readdirSync(at('copy')).sort()).toEqual(files);
    for (const file of files)
      expect(readFileSync(at('copy', file)).equals(readFileSync(join(TINY_MODEL, file))), file).toBe(true);
  });

  test('a conversion to "-" arrives as if it had been made there', THOROUGH, async () => {
    const flags = ['--bases', '8', '--steps', '20', '--shard-size', '3MB', '--threads', '2'];
    expect((await pipe(['compress', TINY_MODEL, '-', ...flags], at('piped'))).codes).toEqual([0, 0]);
    expectSameFiles(at('piped'), at('local'));
  });

  test('a pipe that is cut short leaves nothing, and says so', async () => {
    const whole = spawnSync(process.execPath, [CLI, 'stream', TINY_MODEL], { maxBuffer: 2 ** 28 }).stdout;
    const receiver = spawn(process.execPath, [CLI, 'receive', at('cut'), '-'], { stdio: ['pipe', 'ignore', 'pipe'] });
    let stderr = '';
    receiver.stderr.on('data', (text) => {
      stderr += text;
    });
    receiver.stdin.end(whole.subarray(0, Math.floor(0.7 * whole.length)));
    expect((await once(receiver, 'exit'))[0]).toBe(1);
    expect(stderr).toContain('ends too early');
    expect(existsSync(at('cut'))).toBe(false);
  });
});
