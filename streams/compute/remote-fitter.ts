/** Workers elsewhere (worker.ts) as fitters of this run. */
import { floatBytes } from '../../src/checkpoint/dtype.js';
import type { RemoteFitters } from '../../src/conversion/memory-plan.js';
import type { ChosenEngine } from '../../src/engine/choose-engine.js';
import type { ProductShape } from '../../src/engine/gemm-rate.js';
import { InterruptedError, UnlikeWorkersError } from '../../src/errors.js';
import { checkParams } from '../../src/transport/check-params.js';
import { connect } from '../../src/transport/connect.js';
import { createRequester } from '../../src/transport/requests.js';
import { type TensorPiece, wholePiece } from '../../src/transport/tensor-piece.js';
import { collector } from '../machines/collect.js';
import type { PeerOptions } from '../machines/peer-options.js';
import type { FitTask, FoldedExpert } from './compute.js';
import type { Fitter } from './fitter.js';
import { revived } from './revive-error.js';
import { StallWatch } from './stall-watch.js';
import {
  fitResult,
  foldResult,
  rateResult,
  stepEvent,
  WORKER_SERVICE,
  type WorkerFacts,
  workerFacts,
} from './worker-protocol.js';

/** A worker whose machine is gone is given up after this long: another can do its group meanwhile. */
const RESUME_TIMEOUT_MS = 20_000;
const SILENCE_TIMEOUT_MS = 15_000;

export interface RemoteWorkers extends RemoteFitters {
  readonly urls: readonly string[];
}

/**
 * Asks workers what they are. Throws where one cannot be reached, and an `UnlikeWorkersError` where they run on different engines:
 * which bytes come out would depend on who fitted what.
 */
export async function askWorkers(urls: readonly string[], peers: PeerOptions): Promise<RemoteWorkers> {
  const facts = await Promise.all(urls.map((url) => askWorker(url, peers)));
  const [first] = facts as [WorkerFacts];
  const other = facts.findIndex(({ name }) => name !== first.name);
  if (other >= 0)
    throw new UnlikeWorkersError(urls[0] as string, first.name, urls[other] as string, facts[other]?.name ?? '');
  const limits = facts.flatMap(({ maxTensorBytes }) => maxTensorBytes ?? []);
  const devices = [...new Set(facts.map(({ device }) => device))].join(', ');
  const { name, kind } = first;
  const engine: ChosenEngine = {
    name,
    kind,
    device: devices,
    ...(limits.length && { maxTensorBytes: Math.min(...limits) }),
  };
  return { engine, threads: facts.map(({ threads }) => threads), urls };
}

/** Floating-point operations a second of one session, at the shapes of a problem. */
export async function askRate(
  { urls }: RemoteWorkers,
  { rows, cols, rank }: ProductShape,
  threads: number,
  peers: PeerOptions,
): Promise<number> {
  const channel = await connect(urls[0] as string, { ...peers, service: WORKER_SERVICE });
  try {
    const ask = createRequester(channel);
    const watch = new StallWatch(channel, peers);
    await ask('open', { threads });
    const rate = await watch.over(() => ask('rate', { rows, cols, rank }));
    return checkParams(channel.peer, 'its rate', rateResult, rate);
  } finally {
    await channel.close();
  }
}

async function askWorker(url: string, peers: PeerOptions): Promise<WorkerFacts> {
  const channel = await connect(url, { ...peers, service: WORKER_SERVICE });
  try {
    return checkParams(
      channel.peer,
      'what it says of itself',
      workerFacts,
      await createRequester(channel)('facts', null),
    );
  } finally {
    await channel.close();
  }
}

function* sending(experts: FitTask['experts'], seen: () => void): Generator<TensorPiece> {
  for (const [expert, data] of experts.entries()) {
    seen();
    yield wholePiece(String(expert), data);
  }
}

/** As many sessions as asked for, shared out by the workers' threads. */
export async function connectFitters(
  { urls, threads }: RemoteWorkers,
  sessions: number,
  threadsPerSession: number,
  peers: PeerOptions,
  signal: AbortSignal,
): Promise<Fitter[]> {
  const shares = threads.map((count) => Math.max(1, Math.floor(count / threadsPerSession)));
  const places: string[] = [];
  for (let round = 0; places.length < sessions && round < Math.max(...shares); round++) {
    for (const [i, url] of urls.entries())
      if (round < (shares[i] as number) && places.length < sessions) places.push(url);
  }
  return Promise.all(places.map((url) => connectFitter(url, threadsPerSession, peers, signal)));
}

async function connectFitter(url: string, threads: number, peers: PeerOptions, signal: AbortSignal): Promise<Fitter> {
  const channel = await connect(url, {
    silenceTimeoutMs: SILENCE_TIMEOUT_MS,
    resumeTimeoutMs: RESUME_TIMEOUT_MS,
    ...peers,
    service: WORKER_SERVICE,
  });
  signal.addEventListener('abort', () => channel.fail(new InterruptedError()), { once: true });
  const ask = createRequester(channel);
  await ask('open', { threads });
  const watch = new StallWatch(channel, peers);
  let task: FitTask | undefined;
  return {
    name: url,
    async fit(given, onStep) {
      task = given;
      const { experts, options, state: _, ...rest } = given; // files there are not ours
      const { learningRate, ...others } = options;
      const params = { ...rest, options: { ...others, ...(learningRate !== undefined && { learningRate }) } };
      const { bases: m, rank: r, cols: d, experts: n } = given.problem;
      const size = floatBytes(given.dtype);
      const factors = collector(
        channel.peer,
        new Map([
          ['bases', m * r * d * size],
          ['coefficients', n * m * size],
        ]),
      );
      const value = await watch.over((seen) =>
        revived(
          ask('fit', params, {
            uploads: sending(experts, seen),
            onPiece(piece) {
              seen();
              factors.put(piece);
            },
            onEvent(event) {
              seen();
              onStep(checkParams(channel.peer, 'its progress', stepEvent, event));
            },
          }),
        ),
      );
      const { steps, losses, seconds } = checkParams(channel.peer, 'its fit', fitResult, value);
      const get = factors.finish();
      return { bases: get('bases'), coefficients: get('coefficients'), steps, losses, seconds };
    },
    async fold(expert, written): Promise<FoldedExpert> {
      const { problem, dtype } = task as FitTask;
      const { rows: p, cols: d, rank: r } = problem;
      const bytes = p * (written === 'factors' ? r : d) * floatBytes(dtype);
      const parts = collector(channel.peer, new Map([['data', bytes]]));
      const value = await watch.over(() => revived(ask('fold', { expert, written }, { onPiece: parts.put })));
      return { data: parts.finish()('data'), ...checkParams(channel.peer, 'its expert', foldResult, value) };
    },
    close: () => channel.close(),
  };
}
