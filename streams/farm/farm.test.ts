/** A farm in this process, with a Redis of its own. Its fits run in processes of their own, as always. */
import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { differences, farmTrial } from '../../fixtures/farm.js';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { CLI } from '../../fixtures/paths.js';
import { freePort, HAS_REDIS, type RedisServer, startRedis } from '../../fixtures/redis.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import { VERSION } from '../../src/version.js';
import { compress } from '../operations/compress.js';
import type { RunOptions } from '../run-options.js';
import { addJobs } from './arrivals.js';
import { type FarmRun, jobId, openJobs, putRun } from './farm-run.js';
import { openQueue, queueName } from './redis.js';
import { farmStatus, secondsLeft } from './status.js';
import { submitToFarm } from './submit.js';
import { type FarmEvent, type FarmWorker, workForFarm } from './work.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const OPTIONS: CompressOptions = { bases: 2, steps: 60, threads: 1 };
const LAYERS = { layers: 2, experts: 4, rows: 16, cols: 64 };

describe.skipIf(!HAS_REDIS)('a farm', { timeout: 240_000 }, () => {
  let redis: RedisServer;
  const workers: FarmWorker[] = [];
  const events: FarmEvent[] = [];

  beforeAll(async () => {
    redis = await startRedis(at('redis'), ['--requirepass', 'pass word/1']);
    await generateCheckpoint(at('model'), LAYERS);
    await compress(at('model'), at('local'), OPTIONS);
  });
  afterEach(async () => {
    for (const worker of workers.splice(0)) await worker.close();
    events.splice(0);
    const queue = await openQueue(address());
    await queue.redis.flushall();
    await queue.close();
  });
  afterAll(() => redis.kill());

  const address = (): string => `redis://:pass%20word%2F1@127.0.0.1:${redis.port}`;
  const work = async (saveEvery?: number): Promise<FarmWorker> => {
    const token = 'a-secret-token-of-a-worker';
    const options = { queue: address(), engine: 'onnx-cpu', lockSeconds: 2, saveEvery, token } as const;
    const worker = await workForFarm(options, (event) => events.push(event));
    workers.push(worker);
    return worker;
  };
  const submit = (out: string, options = OPTIONS, run: RunOptions = {}, model = at('model')) =>
    submitToFarm(model, out, options, { queue: address(), tries: 2 }, run);
  const eventsOf = (kind: FarmEvent['event']) => events.filter(({ event }) => event === kind);

  test('gives two runs at once the bytes of local ones, fits each group once, and leaves nothing in the queue', async () => {
    const other = { ...OPTIONS, seed: 1, layers: [1] };
    await work();
    const [first] = await Promise.all([submit(at('out')), submit(at('other'), other)]);
    expect(first.groups).toHaveLength(4);
    await compress(at('model'), at('other-local'), other);
    expect(differences(at('local'), at('out'))).toEqual([]);
    expect(differences(at('other-local'), at('other'))).toEqual([]);
    expect(eventsOf('fitted')).toHaveLength(6);
    expect((await farmStatus(address())).runs).toEqual([]);
    expect(readdirSync(root).filter((name) => name.endsWith('.factors'))).toEqual([]);
    const log = readdirSync(at('redis', 'appendonlydir')).map((name) =>
      readFileSync(at('redis', 'appendonlydir', name)),
    );
    expect(Buffer.concat(log).toString('latin1')).toContain('layer 0 gate_proj');
    expect(Buffer.concat(log).toString('latin1')).not.toMatch(/secret-token|pass word/);
    expect((await submit(at('out'))).already).toBe(true);
  });

  test('writes standard weights as a local run does', THOROUGH, async () => {
    const options = { ...OPTIONS, format: 'hf', maxError: 0.9 } as const;
    await work();
    await submit(at('hf'), options);
    await compress(at('model'), at('hf-local'), options);
    expect(differences(at('hf-local'), at('hf'))).toEqual([]);
  });

  test('refuses a second submit of a run that is being assembled, and goes on after a stop', THOROUGH, async () => {
    const controller = new AbortController();
    const first = submit(at('twice'), OPTIONS, { signal: controller.signal });
    first.catch(() => {});
    while ((await farmStatus(address())).runs[0]?.waiting !== 4) await delay(100);
    await expect(submit(at('twice'))).rejects.toThrow(errors.FolderLockedError);
    controller.abort();
    await expect(first).rejects.toThrow(errors.InterruptedError);
    expect((await farmStatus(address())).runs).toMatchObject([{ groups: 4, waiting: 4, done: 0 }]);
    await work();
    while (eventsOf('fitted').length < 4) await delay(100);
    await submit(at('twice'));
    expect(eventsOf('fitted')).toHaveLength(4);
    expect(differences(at('local'), at('twice'))).toEqual([]);
  });

  test(
    'gives up a group that fails on every try, finishes the others, and tries it again at the next submit',
    THOROUGH,
    async () => {
      const values = (name: string, count: number) =>
        name.includes('layers.1.mlp.experts.2.up_proj') ? new Float32Array(count).fill(Number.NaN) : undefined;
      await generateCheckpoint(at('sick'), { ...LAYERS, values });
      await work();
      const failing = submit(at('poisoned'), OPTIONS, {}, at('sick'));
      await expect(failing).rejects.toThrow(errors.FarmFailedError);
      await expect(failing).rejects.toThrow(
        /1 of the groups failed.*\n {2}- layer 1 up_proj: .*experts\.2\.up_proj.* NaN/,
      );
      await expect(failing).rejects.toMatchObject({ kept: at('poisoned'), exitCode: 1 });
      expect(eventsOf('fitted')).toHaveLength(3);
      expect(eventsOf('failed')).toHaveLength(2);
      const { runs } = await farmStatus(address());
      expect(runs).toMatchObject([{ done: 3, failed: [{ group: 'layer 1 up_proj', tries: 2 }], secondsLeft: 0 }]);
      await expect(submit(at('poisoned'), OPTIONS, {}, at('sick'))).rejects.toThrow(errors.FarmFailedError);
      expect(eventsOf('failed')).toHaveLength(4);
      expect(eventsOf('fitted')).toHaveLength(3);
    },
  );

  test('goes on inside a fit on another worker, and its status shows where that is', THOROUGH, async () => {
    const options: CompressOptions = {
      ...OPTIONS,
      layers: [0],
      projections: ['gate_proj'],
      steps: 3000,
      quality: 'best',
    };
    const running = async () => {
      for (;;) {
        const [run] = (await farmStatus(address())).runs.filter(({ out }) => out === at('moved'));
        const [group] = run?.running ?? [];
        if (group?.step !== undefined) return group;
        await delay(50);
      }
    };
    const first = await work(0.05);
    const submitted = submit(at('moved'), options);
    const before = await running();
    expect(before).toMatchObject({ group: 'layer 0 gate_proj', host: expect.any(String), steps: expect.any(Number) });
    workers.splice(workers.indexOf(first), 1);
    await first.close();
    expect(eventsOf('stopped')).toHaveLength(1);
    await work();
    expect((await running()).step).toBeGreaterThanOrEqual(before.step as number);
    await submitted;
    await compress(at('model'), at('moved-local'), options);
    expect(differences(at('moved-local'), at('moved'))).toEqual([]);
  });

  test('keeps a job for others if a machine does not see the shared folder', async () => {
    const queue = await openQueue(address());
    const run: FarmRun = {
      ...{ id: 'feed', version: VERSION, model: at('model'), factors: at('not-mounted'), out: at('x') },
      ...{ sourceFingerprint: '', options: {}, engine: 'onnx-cpu', threads: 1, batchExperts: 4, units: 1, finished: 0 },
      ...{ submitted: new Date().toISOString(), host: 'here' },
    };
    await putRun(queue, run);
    const label = 'layer 0 gate_proj';
    const jobs = openJobs(queue, run.engine);
    const group = { layer: 0, projection: 'gate_proj', group: 0, groups: 1 } as never;
    await addJobs(jobs, run, [[jobId(run.id, label), { label, groups: [group] }]], 1);
    const worker = await work();
    await expect(worker.broken).rejects.toThrow(errors.FolderNotSharedError);
    await workers.pop()?.close();
    expect((await farmStatus(address())).runs).toMatchObject([{ run: 'feed', waiting: 1, failed: [] }]);
    expect(existsSync(at('not-mounted'))).toBe(false);
    await queue.close();
  });

  test('whose password is wrong or missing says so without the password', async () => {
    for (const [user, reason] of [
      [':wrong-one@', /refuses this user: .*WRONGPASS/],
      ['', /refuses this user: .*NOAUTH/],
    ] as const) {
      const opening = openQueue(`redis://${user}127.0.0.1:${redis.port}`);
      await expect(opening).rejects.toThrow(errors.QueueRefusedError);
      await expect(opening).rejects.toThrow(reason);
      await expect(opening).rejects.not.toThrow('wrong-one');
    }
  });

  test('whose worker, submit and Redis are killed at random moments gives the bytes of a local run', {
    ...THOROUGH,
    timeout: 600_000,
  }, async () => {
    mkdirSync(at('trial'));
    const trial = { layers: 10, steps: 40, workers: 2, kills: 10, pauseMs: 3000, seed: 3 };
    const { different, problems, kills } = await farmTrial(at('trial'), trial, () => {});
    expect(problems).toEqual([]);
    expect(different).toEqual([]);
    expect(kills.worker + kills.submit + kills.redis).toBeGreaterThan(0);
  });
});

describe('the address of a queue', () => {
  test('is shown without user and password', () => {
    expect(queueName('rediss://me:secret@host:6380/2')).toBe('rediss://host:6380/2');
  });

  test.each([
    ['nothing to see', 'it is no address'],
    ['http://me:secret@host', '"http://host" is no address of a Redis'],
  ])('%s is refused', async (address, reason) => {
    const opening = openQueue(address);
    await expect(opening).rejects.toThrow(errors.QueueAddressError);
    await expect(opening).rejects.toThrow(reason);
    await expect(opening).rejects.not.toThrow('secret');
  });

  test('at which nobody answers is told with the reason', async () => {
    const opening = openQueue(`redis://me:secret@127.0.0.1:${await freePort()}`);
    await expect(opening).rejects.toThrow(errors.QueueUnreachableError);
    await expect(opening).rejects.toThrow(/redis:\/\/127.0.0.1:\d+ cannot be reached: .*ECONNREFUSED/);
  });

  test('of a Redis that is too old is refused', async () => {
    const old = createServer((socket) => {
      socket.on('data', (data) => {
        const info = 'redis_version:6.0.16\r\nloading:0\r\n';
        for (const [, command] of String(data).matchAll(/\*\d+\r\n\$\d+\r\n(\w+)/g))
          socket.write(
            /^info$/i.test(command ?? '')
              ? `$${info.length}\r\n${info}\r\n`
              : /^hello$/i.test(command ?? '')
                ? '%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n'
                : '+OK\r\n',
          );
      });
      socket.on('error', () => {});
    });
    await new Promise<void>((resolve) => old.listen(0, '127.0.0.1', resolve));
    const { port } = old.address() as { port: number };
    await expect(openQueue(`redis://127.0.0.1:${port}`)).rejects.toThrow(/is Redis 6\.0\.16, and a farm needs 6\.2/);
    old.close();
  });

  test('comes from a file or the environment too, and a missing library is named with its remedy', async () => {
    writeFileSync(at('queue'), `redis://:secret@127.0.0.1:${await freePort()}\n`);
    const run = (args: string[], env: Record<string, string> = {}) =>
      new Promise<{ code: unknown; stderr: string }>((resolve) => {
        execFile(
          process.execPath,
          [CLI, 'farm', 'status', ...args],
          { env: { ...process.env, ...env } },
          (error, _, stderr) => resolve({ code: error?.code, stderr }),
        );
      });
    writeFileSync(
      at('hook.mjs'),
      `export const resolve = (name, context, next) => {
        if (name === 'bullmq') throw Object.assign(new Error("Cannot find package 'bullmq'"), { code: 'ERR_MODULE_NOT_FOUND' });
        return next(name, context);
      };`,
    );
    writeFileSync(
      at('register.mjs'),
      `import { register } from 'node:module'; register('./hook.mjs', import.meta.url);`,
    );
    const without = { NODE_OPTIONS: `--import=${at('register.mjs')}` };
    const outcomes = await Promise.all([
      run(['--queue-file', at('queue')]),
      run([], { MOBE_QUEUE: 'redis://:secret@127.0.0.1:1' }),
      run([]),
      run(['--queue', 'redis://127.0.0.1:1'], without),
    ]);
    const expected = [
      /cannot be reached/,
      /127\.0\.0\.1:1 cannot be reached/,
      /MOBE_QUEUE/,
      /npm install bullmq ioredis/,
    ];
    for (const [i, { code, stderr }] of outcomes.entries()) {
      expect(code, stderr).toBe(2);
      expect(stderr).toMatch(expected[i] as RegExp);
      expect(stderr).not.toContain('secret');
    }
  });
});

test('the time left is that of the waiting groups over those that run, and unknown before any pace is', () => {
  expect(secondsLeft(0, [], [])).toBe(0);
  expect(secondsLeft(3, [], [10])).toBeUndefined();
  expect(secondsLeft(3, [{ secondsLeft: 4 }], [])).toBeUndefined();
  expect(secondsLeft(0, [{ secondsLeft: 4 }, { secondsLeft: 7 }], [])).toBe(7);
  expect(secondsLeft(4, [{ secondsLeft: 4 }, { secondsLeft: 6 }], [10, 20])).toBe(35);
});
