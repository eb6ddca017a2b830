/**
 * A conversion to another machine resumes after either side ended, from the work that the receiver has. Neither side trusts the
 * other.
 */
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { interceptedFileSystem, systemError } from '../../fixtures/intercepted-file-system.js';
import { startProxy } from '../../fixtures/peers.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH, thoroughBut } from '../../fixtures/thorough.js';
import { parseIdentity } from '../../src/conversion/run-identity.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import { JOURNAL_FILE, PARTIAL_FOLDER } from '../../src/output/journal.js';
import { layoutShards, type ShardLayout } from '../../src/output/layout.js';
import type { Output } from '../../src/output/output.js';
import type { Unit } from '../../src/output/unfinished-run.js';
import { jsonPiece } from '../../src/transport/json-tensor.js';
import { listen } from '../../src/transport/listen.js';
import { answerRequests, type Handler } from '../../src/transport/requests.js';
import { compress } from '../operations/compress.js';
import type { Progress, RunOptions } from '../run-options.js';
import { OUTPUT_SERVICE } from './output-protocol.js';
import { type ReceiveHooks, type Receiver, receive } from './receive.js';
import { remoteOutput } from './remote-output.js';
import { serve } from './serve.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const OPTIONS: CompressOptions = { bases: 2, steps: 100, shardSize: 6000, threads: 1 };
const HERE = { host: '127.0.0.1', port: 0 } as const;

const cleanups: Array<() => Promise<unknown>> = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup();
});
async function startReceiver(out: string, hooks: ReceiveHooks = {}): Promise<Receiver> {
  const receiver = await receive(out, HERE, hooks);
  cleanups.push(receiver.close);
  return receiver;
}

beforeAll(async () => {
  await generateCheckpoint(at('model'), { layers: 3, experts: 4, rows: 16, cols: 64, shardBytes: 6000 });
  await compress(at('model'), at('whole'), OPTIONS);
});

function expectSame(out: string): void {
  expect(readdirSync(out).sort()).toEqual(readdirSync(at('whole')).sort());
  for (const file of readdirSync(at('whole')))
    if (file !== 'mobe.json')
      expect(readFileSync(join(out, file)).equals(readFileSync(at('whole', file))), file).toBe(true);
}

/** Runs to the end. Returns how many groups it fitted. */
async function finish(url: string, options = OPTIONS, run: RunOptions = {}): Promise<number> {
  let fitted = 0;
  const onProgress = ({ kind }: Progress): void => {
    if (kind === 'group') fitted++;
  };
  await compress(at('model'), url, options, { ...run, onProgress });
  return fitted;
}

/** Finishes three of six groups, then stops as Ctrl-C does. */
async function interrupt(url: string, options = OPTIONS): Promise<void> {
  const controller = new AbortController();
  let finished = 0;
  const onProgress = ({ kind }: Progress): void => {
    if (kind === 'group' && ++finished === 3) controller.abort();
  };
  const run = compress(at('model'), url, options, { onProgress, signal: controller.signal });
  await expect(run).rejects.toThrow(errors.InterruptedError);
  await expect(run).rejects.toMatchObject({ kept: url });
}

describe('an interrupted conversion', () => {
  for (const [where, restarted, cost] of [
    ['the receiver that is there', false, THOROUGH],
    ['another receiver of the same folder', true, {}],
  ] as const)
    test(`goes on, at ${where}`, cost, async () => {
      const out = at(`again-${restarted}`);
      const log: string[] = [];
      const first = await startReceiver(out, { onLog: (line) => log.push(line) });
      await interrupt(first.url);
      if (restarted) await first.close();
      expect(existsSync(join(out, 'config.json'))).toBe(false);
      expect(log.at(-1)).toContain('what was finished is kept');
      const { url } = restarted ? await startReceiver(out) : first;
      expect(await finish(url)).toBeLessThan(6);
      expectSame(out);
    });

  test('may have been begun here, without a receiver', THOROUGH, async () => {
    const out = at('moved');
    await interrupt(out);
    expect(await finish((await startReceiver(out)).url)).toBeLessThan(6);
    expectSame(out);
  });

  test('another one is refused, saying what differs, and starts over when forced', async () => {
    const receiver = await startReceiver(at('other'));
    await interrupt(receiver.url, { ...OPTIONS, seed: 5 });
    const other = compress(at('model'), receiver.url, OPTIONS);
    await expect(other).rejects.toThrow(errors.UnfinishedRunError);
    await expect(other).rejects.toThrow('seed 5, now 0');
    await expect(other).rejects.toMatchObject({ exitCode: 2 });
    expect(await finish(receiver.url, OPTIONS, { force: true })).toBe(6);
    expectSame(at('other'));
  });

  test('bytes that were damaged meanwhile are done again', THOROUGH, async () => {
    const receiver = await startReceiver(at('damaged'));
    await interrupt(receiver.url);
    const partial = at('damaged', PARTIAL_FOLDER);
    for (const name of readdirSync(partial).filter((it) => it.endsWith('.safetensors'))) {
      const bytes = readFileSync(join(partial, name));
      bytes[bytes.length - 1] = (bytes.at(-1) as number) ^ 1;
      writeFileSync(join(partial, name), bytes);
    }
    await finish(receiver.url);
    expectSame(at('damaged'));
  });

  test('a journal whose end was lost costs what it told of', async () => {
    const receiver = await startReceiver(at('torn'));
    await interrupt(receiver.url);
    const journal = at('torn', PARTIAL_FOLDER, JOURNAL_FILE);
    const bytes = readFileSync(journal);
    writeFileSync(journal, bytes.subarray(0, bytes.length / 2));
    await finish(receiver.url);
    expectSame(at('torn'));
  });

  test('before anything was computed leaves nothing', async () => {
    const receiver = await startReceiver(at('early'));
    const controller = new AbortController();
    const onProgress = ({ kind }: Progress): void => {
      if (kind === 'plan') controller.abort();
    };
    const run = compress(at('model'), receiver.url, OPTIONS, { onProgress, signal: controller.signal });
    await expect(run).rejects.toThrow(errors.InterruptedError);
    await expect(run).rejects.not.toHaveProperty('kept');
    expect(existsSync(at('early'))).toBe(false);
  });
});

const atSync = thoroughBut('sync');
for (const operation of ['write', 'truncate', 'sync', 'rename'] as const)
  test(
    `the receiver's disk fails at a ${operation}: the sender tells it, what is finished is kept, and then it goes on`,
    atSync(operation),
    async () => {
      let calls = 0;
      let broken = true;
      const fileSystem = interceptedFileSystem((call) => {
        if (broken && call.operation === operation && /safetensors$/.test(call.path) && ++calls >= 3)
          throw systemError('ENOSPC', operation);
        return undefined;
      });
      const out = at(`full-${operation}`);
      const receiver = await startReceiver(out, { fileSystem });
      let groups = 0;
      const onProgress = ({ kind }: Progress): void => {
        if (kind === 'group') groups++;
      };
      const run = compress(at('model'), receiver.url, OPTIONS, { onProgress });
      await expect(run).rejects.toThrow(errors.RemoteError);
      await expect(run).rejects.toThrow('Free some space');
      expect(groups).toBeLessThan(operation === 'rename' ? 7 : 6); // the failure ends the run before the other groups are done
      expect(existsSync(join(out, 'config.json'))).toBe(false);
      broken = false;
      await finish(receiver.url);
      expectSame(out);
    },
  );

test('a fit goes on inside its group, from a state that is kept where it runs', async () => {
  const receiver = await startReceiver(at('inside'));
  const options: CompressOptions = { ...OPTIONS, layers: [1], projections: ['up_proj'], steps: 2000 };
  await compress(at('model'), at('inside-whole'), options);
  const controller = new AbortController();
  const onStep = (it: Progress): void => {
    if (it.kind === 'step' && it.step > 150) controller.abort();
  };
  const run = { onProgress: onStep, signal: controller.signal, saveEvery: 0.001 };
  const stopped = compress(at('model'), receiver.url, options, run);
  await expect(stopped).rejects.toThrow(errors.InterruptedError);
  await expect(stopped).rejects.toMatchObject({ kept: receiver.url });
  const states = () => readdirSync(join(`${root}-cache`, 'mobe'), { recursive: true }).map(String);
  const before = states().filter((it) => it.endsWith('.state')).length;
  const steps: number[] = [];
  const onProgress = (it: Progress): void => {
    if (it.kind === 'step') steps.push(it.step);
  };
  await compress(at('model'), receiver.url, options, { onProgress });
  expect(steps[0]).toBeGreaterThan(100);
  for (const file of readdirSync(at('inside-whole')))
    if (file !== 'mobe.json')
      expect(readFileSync(at('inside', file)).equals(readFileSync(at('inside-whole', file))), file).toBe(true);
  expect(states().filter((it) => it.endsWith('.state'))).toHaveLength(before - 1);
});

test('a place for states that vanishes costs states, not the run', async () => {
  const receiver = await startReceiver(at('vanished'));
  let steps = 0;
  const onProgress = ({ kind }: Progress): void => {
    if (kind === 'step' && ++steps === 20) rmSync(join(`${root}-cache`, 'mobe'), { recursive: true, force: true });
  };
  await compress(at('model'), receiver.url, OPTIONS, { onProgress, saveEvery: 0.001 });
  expectSame(at('vanished'));
});

test('a machine that comes back with another token ends the run, and what is finished is kept', THOROUGH, async () => {
  const open = await serve(at('model'), HERE);
  const closed = await serve(at('model'), { ...HERE, token: 'another-token-than-none' });
  cleanups.push(open.close, closed.close);
  const proxy = await startProxy(open.url);
  let groups = 0;
  const onProgress = ({ kind }: Progress): void => {
    if (kind !== 'group' || ++groups !== 3) return;
    proxy.refuse();
    proxy.accept(closed.url);
  };
  const run = compress(proxy.url, at('refused'), OPTIONS, { onProgress });
  await expect(run).rejects.toThrow(errors.UnauthorisedError);
  await expect(run).rejects.toMatchObject({ kept: at('refused') });
  proxy.refuse();
  proxy.accept(open.url);
  let fitted = 0;
  const count = ({ kind }: Progress): void => {
    if (kind === 'group') fitted++;
  };
  await compress(proxy.url, at('refused'), OPTIONS, { onProgress: count });
  expect(fitted).toBeLessThan(6);
});

const wanted = { kind: 'compress', sourceFingerprint: '0', settings: {} } as const;
const identity = parseIdentity({
  wanted,
  version: '0',
  layout: '0',
  circumstances: {},
  headers: '',
  modified: {},
  contents: {},
});

describe('a sender that gives up', THOROUGH, () => {
  const { shards } = layoutShards([{ name: 'a', dtype: 'U8', shape: [2 ** 21], bytes: 2 ** 21 }], 2 ** 22);

  async function begin(url: string): Promise<Output> {
    const opened = await remoteOutput(url, { wanted, neededBytes: 1, inputs: [], identity }, {});
    const { output } = opened as { output: Output };
    await output.reserve(shards[0] as ShardLayout);
    return output;
  }

  test.each([false, true])(
    'is answered whether anything is kept (%s), whatever still is on its way here',
    async (keep) => {
      const receiver = await startReceiver(at(`given-up-${keep}`));
      const output = await begin(receiver.url);
      await output.write('a', 0, new Uint8Array(2 ** 20));
      const began = performance.now();
      const left = output.abandon(keep);
      await expect(output.write('a', 2 ** 20, new Uint8Array(2 ** 20))).rejects.toThrow(errors.InterruptedError);
      expect(await left).toBe(keep);
      expect(performance.now() - began).toBeLessThan(2900); // before the limit of three seconds
      expect(existsSync(at(`given-up-${keep}`, PARTIAL_FOLDER))).toBe(keep);
    },
  );

  test('learns that the receiver is gone, also while nothing is written', async () => {
    const receiver = await startReceiver(at('gone'));
    const output = await begin(receiver.url);
    const lost = new Promise<Error>((resolve) => output.onLost?.(resolve));
    await receiver.close();
    expect(await lost).toBeInstanceOf(errors.SessionLostError);
    await output.abandon(true);
  });
});

describe('started again while its first connection is not given up yet:', THOROUGH, () => {
  /** Cuts a conversion off from its receiver in the middle, without either noticing. */
  async function cutOff(name: string) {
    const receiver = await startReceiver(at(name));
    const proxy = await startProxy(receiver.url);
    let groups = 0;
    const onProgress = ({ kind }: Progress): void => {
      if (kind === 'group' && ++groups === 3) proxy.refuse();
    };
    const peers = { resumeTimeoutMs: 60_000 };
    const lost = compress(at('model'), proxy.url, OPTIONS, { onProgress, peers }).catch((error: Error) => error);
    while (groups < 3) await new Promise((resolve) => setTimeout(resolve, 10));
    await new Promise((resolve) => setTimeout(resolve, 100));
    return { receiver, proxy, lost };
  }

  test('the same takes over, and the first learns it', async () => {
    const { receiver, proxy, lost } = await cutOff('taken');
    expect(await finish(receiver.url)).toBeLessThan(6);
    expectSame(at('taken'));
    proxy.accept(receiver.url);
    expect(await lost).toBeInstanceOf(errors.SessionLostError);
  });

  test('another is told to wait, and the first ends in peace', async () => {
    const { receiver, proxy, lost } = await cutOff('left-alone');
    const other = compress(at('model'), receiver.url, { ...OPTIONS, seed: 5 });
    await expect(other).rejects.toThrow('being written by another conversion');
    proxy.accept(receiver.url);
    expect(await lost).not.toBeInstanceOf(Error);
    expectSame(at('left-alone'));
  });
});

describe('a receiver that lies about what it has', THOROUGH, () => {
  const { shards } = layoutShards([{ name: 'a', dtype: 'U8', shape: [8], bytes: 8 }], 100);
  const group = { layer: 1, projection: 'up_proj', group: 0, groups: 1 } as const;
  const report = { ...group, relativeError: 0.2, mse: 1e-4, sigma: 0.01, steps: 3, seconds: 1 };
  const UNITS: Unit[] = [
    { id: 'copy', parts: [{ tensor: 'a', offset: 0, bytes: 4 }], noted: false },
    { id: 'layer 1 up_proj', parts: [{ tensor: 'a', offset: 4, bytes: 4 }], noted: true },
  ];
  const sha256 = '0'.repeat(64);
  const part = (start: number, end: number, tensor = 'a') => ({ part: { tensor, start, end, sha256 } });
  const done = { done: 'layer 1 up_proj', note: report };

  async function openAt(answer: Handler): Promise<Output> {
    const handlers: Record<string, Handler> = {
      create: async () => ({ unfinished: true }),
      resume: answer,
      abandon: async () => ({ kept: true }),
    };
    const listener = await listen({ ...HERE, service: OUTPUT_SERVICE }, (channel) =>
      answerRequests(channel, channel, handlers),
    );
    cleanups.push(listener.close);
    const opened = await remoteOutput(listener.url, { wanted, neededBytes: 1, inputs: [], identity }, {});
    const { output } = opened as { output: Output };
    cleanups.push(() => output.abandon());
    return output;
  }

  const resumeAt = async (answer: Handler) => {
    const output = await openAt(answer);
    const finished = await output.resume?.(shards, UNITS, () => {});
    return { finished: [...(finished ?? [])], parts: output.finishedParts };
  };

  test('is believed as far as it makes whole units', async () => {
    const say = (entries: unknown): Promise<unknown> =>
      resumeAt(async (_, { tensors }) => void (await tensors([jsonPiece(entries)])));
    const finished = [
      ['copy', undefined],
      ['layer 1 up_proj', report],
    ];
    const all = await say([part(0, 4), part(4, 8), done]);
    expect(all).toEqual({ finished, parts: [part(0, 4).part, part(4, 8).part] });
    expect(JSON.stringify(all)).toContain(JSON.stringify(report)); // keeps the order of keys, because the record must have the same bytes
    const nothing = { finished: [], parts: [] };
    expect(await say([part(0, 3), part(4, 8)])).toEqual(nothing); // a hole; no note
    expect(await say([done])).toEqual(nothing);
    expect(await say([part(0, 4, 'b'), part(4, 8, '__proto__'), done])).toEqual(nothing);
    expect(await say([part(0, 8), done])).toEqual(nothing); // beyond its unit
    expect(await say([part(0, 2), part(0, 2), part(1, 4), part(2, 4)])).toMatchObject({
      parts: [part(0, 2).part, part(2, 4).part],
    });
  });

  test.each<[string, unknown]>([
    ['no list', { part: 3 }],
    ['a million entries that are none', Array.from({ length: 1e6 }, () => 0)],
    ['an entry of no kind', [{ commit: { files: [], last: [], replaces: [] } }]],
    ['a part that ends before it begins', [part(4, 4 - 8)]],
    ['a hash that is none', [{ part: { tensor: 'a', start: 0, end: 4, sha256: 'x' } }]],
    ["another group's report", [{ done: 'layer 2 up_proj', note: report }]],
    ['a report without figures', [{ done: 'layer 1 up_proj', note: { ...group, relativeError: 0.2, seconds: 1 } }]],
  ])('is refused when it says %s', async (_, entries) => {
    const run = resumeAt(async (_params, { tensors }) => void (await tensors([jsonPiece(entries)])));
    await expect(run).rejects.toThrow(errors.ProtocolError);
    await expect(run).rejects.toThrow('what it has of this run');
  });

  test('is refused when its progress is none', async () => {
    const run = resumeAt(async (_params, { event }) => void (await event({ bytes: -1 })));
    await expect(run).rejects.toThrow(errors.ProtocolError);
  });
});
