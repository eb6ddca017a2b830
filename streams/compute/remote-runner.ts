/** Runners on other machines: connections to workers (worker.ts). */
import type { RemoteFitters } from '../../src/conversion/memory-plan.js';
import type { ChosenEngine } from '../../src/engine/choose-engine.js';
import { InterruptedError, ProtocolError, UnlikeWorkersError } from '../../src/errors.js';
import { partsOf, storedFactors } from '../../src/methods/factor-storage.js';
import type { FitStep } from '../../src/methods/method.js';
import { checkParams } from '../../src/transport/check-params.js';
import { connect } from '../../src/transport/connect.js';
import { jsonPiece } from '../../src/transport/json-tensor.js';
import { createRequester } from '../../src/transport/requests.js';
import { type TensorPiece, wholePiece } from '../../src/transport/tensor-piece.js';
import { HandOver } from '../flow/hand-over.js';
import { collector } from '../machines/collect.js';
import type { PeerOptions } from '../machines/peer-options.js';
import { type FitJob, type JobOutput, jobForm, type OwnedData, writtenEncoding } from './job.js';
import type { JobRunner } from './job-runner.js';
import { revived } from './revive-error.js';
import { StallWatch } from './stall-watch.js';
import {
  expertName,
  jobEvent,
  metricName,
  sharedName,
  WORKER_SERVICE,
  type WorkerFacts,
  workerFacts,
} from './worker-protocol.js';
import { writtenSizes } from './written-weights.js';

/** How long a lost connection may take to resume. After that, another worker takes the group. */
const RESUME_TIMEOUT_MS = 20_000;
const SILENCE_TIMEOUT_MS = 15_000;

/** Workers, the engine that they share, and the CPU threads of each. */
export interface RemoteWorkers extends RemoteFitters {
  readonly urls: readonly string[];
}

/**
 * Asks workers for their engine and threads. Throws a `PeerError` if one cannot be reached, and `UnlikeWorkersError` if their
 * engines differ, because the result would then depend on which worker fitted which group.
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
    ...(facts.every(({ tf32 }) => tf32) && { tf32: true }),
  };
  return { engine, threads: facts.map(({ threads }) => threads), urls };
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

function* sending(job: FitJob, { experts, metric = [] }: OwnedData, seen: () => void): Generator<TensorPiece> {
  yield jsonPiece(job, 'job');
  for (const [expert, data] of experts.entries()) {
    seen();
    yield wholePiece(String(expert), data);
  }
  for (const [expert, data] of metric.entries()) {
    seen();
    yield wholePiece(metricName(expert), data);
  }
}

/** Opens sessions on the workers, more on those with more threads. May open fewer than `sessions`. */
export async function connectRunners(
  { urls, threads }: RemoteWorkers,
  sessions: number,
  threadsPerSession: number,
  peers: PeerOptions,
  signal: AbortSignal,
): Promise<JobRunner[]> {
  const shares = threads.map((count) => Math.max(1, Math.floor(count / threadsPerSession)));
  const places: string[] = [];
  for (let round = 0; places.length < sessions && round < Math.max(...shares); round++) {
    for (const [i, url] of urls.entries())
      if (round < (shares[i] as number) && places.length < sessions) places.push(url);
  }
  return Promise.all(places.map((url) => connectRunner(url, threadsPerSession, peers, signal)));
}

/** Outputs that may wait here to be written. The worker pauses when there are more. */
const OUTPUTS_WAITING = 2;

async function connectRunner(
  url: string,
  threads: number,
  peers: PeerOptions,
  signal: AbortSignal,
): Promise<JobRunner> {
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
  return {
    name: url,
    async *run(job, data, { onStep }) {
      const outputs = new HandOver<JobOutput>();
      const answer = new JobAnswer(channel.peer, job, onStep, (output) => outputs.push(output));
      watch
        .over((seen, aside) =>
          revived(
            ask('fit', null, {
              uploads: sending(job, data, seen),
              async onPiece(piece) {
                seen();
                await aside(outputs.room(OUTPUTS_WAITING));
                answer.put(piece);
              },
              onEvent(value) {
                seen();
                answer.event(value);
              },
            }),
          ),
        )
        .then(() => answer.finish())
        .then(
          () => outputs.end(),
          (error) => outputs.end(error),
        );
      yield* outputs;
    },
    close: () => channel.close(),
  };
}

/** Turns a worker's answer into a job's outputs. It allocates memory only for the tensors that must come next. */
class JobAnswer {
  private tensors;
  /** The expert that must come next; undefined until the group is fitted. */
  private next: number | undefined;

  constructor(
    private readonly peer: string,
    private readonly job: FitJob,
    private readonly onStep: (step: FitStep) => void,
    private readonly onOutput: (output: JobOutput) => void,
  ) {
    this.tensors = collector(peer, this.expected());
  }

  /** Names and bytes of the tensors that must come before the next event other than "step". */
  private expected(): Map<string, number> {
    const { written } = this.job;
    const { shared, byExpert } = storedFactors(jobForm(this.job));
    const { next } = this;
    if (next === undefined) return new Map(partsOf(shared).map(({ key, bytes }) => [sharedName(key), bytes]));
    if (written === 'weights') {
      const sizes = writtenSizes(writtenEncoding(this.job, next), this.job.format);
      return new Map([...sizes].map(([name, size]) => [expertName(next, name), size] as const));
    }
    return new Map(partsOf(byExpert).map(({ key, bytes }) => [expertName(next, key), bytes]));
  }

  put(piece: TensorPiece): void {
    this.tensors.put(piece);
  }

  event(value: unknown): void {
    const event = checkParams(this.peer, 'its progress', jobEvent, value);
    if (event.kind === 'step') {
      const { kind: _, ...step } = event;
      this.onStep(step);
      return;
    }
    const number = event.kind === 'expert' ? event.expert : undefined;
    if (number !== this.next) throw new ProtocolError(this.peer, `it tells of expert ${number} before ${this.next}`);
    const get = this.tensors.finish();
    const byFactor = Object.fromEntries(
      [...this.expected().keys()].map((name) => [name.slice(name.indexOf('.') + 1), get(name)] as const),
    );
    this.next = number === undefined ? this.job.firstExpert : number + 1;
    this.tensors = collector(this.peer, this.next < this.job.problem.experts ? this.expected() : new Map());
    this.onOutput(event.kind === 'fitted' ? { ...event, shared: byFactor } : { ...event, tensors: byFactor });
  }

  /** Throws a `ProtocolError` if the answer ended early. */
  finish(): void {
    const { experts } = this.job.problem;
    if (this.next !== experts)
      throw new ProtocolError(this.peer, `it ends after ${this.next ?? 0} of ${experts} experts`);
  }
}
