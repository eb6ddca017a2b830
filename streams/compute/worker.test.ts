/** Tests `mobe worker` with coordinators that break the protocol. machines.test.ts has the runs that succeed. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Channel } from '../../src/transport/channel.js';
import { connect } from '../../src/transport/connect.js';
import { jsonPiece } from '../../src/transport/json-tensor.js';
import type { Listener } from '../../src/transport/listen.js';
import { createRequester, type Requester } from '../../src/transport/requests.js';
import { wholePiece } from '../../src/transport/tensor-piece.js';
import type { FitJob } from './job.js';
import { work } from './worker.js';
import { WORKER_SERVICE } from './worker-protocol.js';

const FIT: FitJob = {
  method: 'mobe',
  problem: { experts: 3, rows: 4, cols: 16, bases: 1, rank: 4, activation: 'silu' } as FitJob['problem'],
  format: { rows: 4, cols: 16, transposed: false },
  encodings: [{ kind: 'float', dtype: 'F32' }],
  dtype: 'F32',
  written: 'factors',
  sigma: 1,
  solver: 'varpro',
  options: { steps: 3, batchExperts: 3, holdTargets: true, seed: 0 },
  label: 'a group',
  tensors: [0, 1, 2].map((i) => ({ name: `experts.${i}`, file: 'model.safetensors', encoding: 0 })),
  firstExpert: 0,
};
const EXPERT = new Uint8Array(Float32Array.from({ length: 64 }, (_, i) => Math.sin(i * i)).buffer);
const uploads = (...names: string[]) => names.map((name) => wholePiece(name, EXPERT));

let worker: Listener;
let channels: Channel[];
beforeEach(async () => {
  channels = [];
  worker = await work({ threads: 1, maxMemory: 600e6 }, { host: '127.0.0.1', port: 0 });
});
afterEach(async () => {
  for (const channel of channels) channel.fail(new Error('the test is over'));
  await worker.close();
});
async function peer(): Promise<Requester> {
  const channel = await connect(worker.url, { service: WORKER_SERVICE });
  channels.push(channel);
  return createRequester(channel);
}
async function opened(): Promise<Requester> {
  const ask = await peer();
  await ask('open', { threads: 1 });
  return ask;
}

interface Answer {
  readonly events: Array<{ kind: string }>;
  /** Bytes by name. */
  readonly tensors: Map<string, number>;
}
async function askFit(ask: Requester, params: unknown = FIT, ...names: string[]): Promise<Answer> {
  const answer: Answer = { events: [], tensors: new Map() };
  await ask('fit', null, {
    uploads: [jsonPiece(params, 'job'), ...uploads(...names)],
    onPiece: ({ name, bytes }) => void answer.tensors.set(name, bytes),
    onEvent: (event) => void answer.events.push(event as { kind: string }),
  });
  return answer;
}
const fitted = { kind: 'fitted', steps: 3 };

test('the whole conversation of one that does behave', async () => {
  const ask = await opened();
  expect(await ask('facts', null)).toMatchObject({ name: 'onnx-cpu', threads: 1 });
  const { events, tensors } = await askFit(ask, FIT, '0', '1', '2');
  expect(events.filter(({ kind }) => kind !== 'step')).toMatchObject([
    fitted,
    ...[0, 1, 2].map((expert) => ({ kind: 'expert', expert, squaredNorm: expect.any(Number) })),
  ]);
  expect([...tensors]).toEqual([
    ['shared.B', 4 * 4 * 16],
    ['shared.alpha', 4 * 3],
    ...[0, 1, 2].map((expert) => [`${expert}.A`, 4 * 4 * 4]),
  ]);
});

test('a job may describe more experts than fit the header of a frame', async () => {
  const experts = 600;
  const file = `/models/${'long/'.repeat(30)}model.safetensors`;
  const tensors = Array.from({ length: experts }, (_, i) => ({ name: `experts.${i}`, file, encoding: 0 }));
  const problem = { ...FIT.problem, experts };
  const names = tensors.map((_, i) => String(i));
  const { events } = await askFit(await opened(), { ...FIT, problem, tensors }, ...names);
  expect(events.filter(({ kind }) => kind === 'expert')).toHaveLength(experts);
});

test('an interrupted answer can be had from the middle', async () => {
  const { tensors } = await askFit(await opened(), { ...FIT, firstExpert: 2 }, '0', '1', '2');
  expect([...tensors.keys()]).toEqual(['shared.B', 'shared.alpha', '2.A']);
});

describe('refused, and the session goes on:', () => {
  const other = (change: (params: FitJob) => unknown) =>
    JSON.parse(JSON.stringify(FIT), (key, value) => (key === '' ? change(value) : value));
  test.each<[string, (ask: Requester) => Promise<unknown>, string]>([
    ['an expert too few', (ask) => askFit(ask, FIT, '0', '1'), 'did not send tensor "2"'],
    ['an expert too many', (ask) => askFit(ask, FIT, '0', '1', '2', '3'), 'tensor "3"'],
    [
      'an expert of another size',
      (ask) =>
        askFit(
          ask,
          other((it) => ({ ...it, format: { ...it.format, cols: 8 } })),
          '0',
          '1',
          '2',
        ),
      '256 bytes',
    ],
    [
      'a problem larger than the memory',
      (ask) =>
        askFit(
          ask,
          other((it) => ({ ...it, problem: { ...it.problem, bases: 2 ** 20 } })),
        ),
      '--max-memory',
    ],
    [
      'sizes that are none',
      (ask) =>
        askFit(
          ask,
          other((it) => ({ ...it, problem: { ...it.problem, experts: -1 } })),
        ),
      'problem.experts',
    ],
    [
      'a solver nobody knows',
      (ask) =>
        askFit(
          ask,
          other((it) => ({ ...it, solver: 'magic' })),
        ),
      'solver',
    ],
    [
      'a method nobody knows',
      (ask) =>
        askFit(
          ask,
          other((it) => ({ ...it, method: 'magic' })),
        ),
      'method',
    ],
  ])('%s', async (_, act, says) => {
    const ask = await opened();
    await expect(act(ask)).rejects.toThrow(says);
    expect((await askFit(ask, FIT, '0', '1', '2')).events).toContainEqual(expect.objectContaining(fitted));
  });

  test('a job that is no JSON', async () => {
    const ask = await opened();
    const run = ask('fit', null, { uploads: [wholePiece('job', Uint8Array.of(1, 2))] });
    await expect(run).rejects.toThrow('the job is not one');
    expect((await askFit(ask, FIT, '0', '1', '2')).events).toContainEqual(expect.objectContaining(fitted));
  });

  test('work before "open"', async () => {
    const ask = await peer();
    await expect(askFit(ask, FIT, '0', '1', '2')).rejects.toThrow('before "open"');
    await ask('open', { threads: 1 });
    expect((await askFit(ask, FIT, '0', '1', '2')).events).toContainEqual(expect.objectContaining(fitted));
  });
});

test('memory that a session gives back is there for the next', async () => {
  for (let session = 0; session < 4; session++) {
    const ask = await opened();
    expect((await askFit(ask, FIT, '0', '1', '2')).events).toContainEqual(expect.objectContaining(fitted));
    await channels[session]?.close();
  }
});
