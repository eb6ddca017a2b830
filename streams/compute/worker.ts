import { availableParallelism, totalmem } from 'node:os';
import { expertBytes } from '../../src/calibration/group-metric.js';
import { matrixBytes } from '../../src/checkpoint/stored-matrix.js';
import { expectedPeak, memoryTerms, type Workload } from '../../src/conversion/memory-terms.js';
import { type ChosenEngine, chooseEngine, type EngineChoice } from '../../src/engine/choose-engine.js';
import type { EngineName } from '../../src/engine/create-engine.js';
import type { Precision } from '../../src/engine/engine.js';
import { allowTensorCores, choosePrecision } from '../../src/engine/tensor-cores.js';
import { BudgetTooSmallError, ProtocolError } from '../../src/errors.js';
import { withRounding } from '../../src/methods/factor-storage.js';
import { withFeedback } from '../../src/methods/input-metric.js';
import type { FitMemory, FitStep } from '../../src/methods/method.js';
import { methodNamed } from '../../src/methods/registry.js';
import type { Channel } from '../../src/transport/channel.js';
import { checkParams } from '../../src/transport/check-params.js';
import { readJson } from '../../src/transport/json-tensor.js';
import { type Listener, listen } from '../../src/transport/listen.js';
import { answerRequests, type Handler, type Reply } from '../../src/transport/requests.js';
import { type TensorPiece, wholePiece } from '../../src/transport/tensor-piece.js';
import { collector, takeTensor } from '../machines/collect.js';
import type { ListenAt, ServiceHooks } from '../machines/peer-options.js';
import { ComputeThread } from './compute-thread.js';
import { fitJob, type JobOutput, jobForm, jobFormats } from './job.js';
import {
  expertName,
  MAX_JOB_BYTES,
  metricName,
  openParams,
  sharedName,
  WORKER_SERVICE,
  type WorkerFacts,
} from './worker-protocol.js';

/** Options of a worker. */
export interface WorkerOptions {
  readonly engine?: EngineChoice;
  /** `f32` forbids TF32, which is allowed otherwise where the engine has it. */
  readonly precision?: Precision;
  /** CPU threads for all sessions together; default: all. */
  readonly threads?: number;
  /** Memory for all fits together, in bytes; default: 80 % of the machine's. */
  readonly maxMemory?: number;
}

/**
 * Listens for coordinators and fits groups for them. Each session has a thread of its own and fits one group at a time. Throws
 * if the engine is not available or has no such precision, or the port cannot be opened.
 */
export async function work(
  {
    engine = 'onnx-cpu',
    precision,
    threads = availableParallelism(),
    maxMemory = Math.floor(0.8 * totalmem()),
  }: WorkerOptions,
  at: ListenAt,
  hooks: ServiceHooks = {},
): Promise<Listener> {
  if (precision !== 'f32') allowTensorCores();
  const chosen = await chooseEngine(engine, threads);
  const { name, device, kind, maxTensorBytes } = chosen;
  const facts: WorkerFacts = {
    ...{ name, device, kind, threads },
    ...(maxTensorBytes !== undefined && { maxTensorBytes }),
    ...(choosePrecision(chosen, precision) === 'tf32' && { tf32: true }),
  };
  const memory = new Reservations(chosen, maxMemory);
  return listen({ ...at, service: WORKER_SERVICE, ...hooks }, async (channel) => {
    const session = new WorkerSession(channel, facts, memory, hooks);
    try {
      await answerRequests(channel, channel, session.handlers);
    } finally {
      await session.close();
    }
  });
}

/** A fit that is under way. */
export interface RunningFit {
  /** The group's bytes as stored. */
  readonly stored: number;
  /** The bytes of its metric; 0 if it has none. */
  readonly metric: number;
  readonly fit: FitMemory;
}

/** The memory of a worker that has so many sessions open and these fits under way. */
export const workload = (engine: EngineName, sessions: number, running: readonly RunningFit[]): Workload => ({
  engine,
  threads: sessions,
  connections: running.map(({ stored, metric }) => stored + metric),
  groupBytes: running.reduce((sum, { stored }) => sum + stored, 0),
  metricBytes: running.reduce((sum, { metric }) => sum + metric, 0),
  fits: running.map(({ fit }) => fit),
});

/** Memory over all sessions: each has a thread, and at most one fit. */
class Reservations {
  sessions = 0;
  private readonly running = new Set<RunningFit>();

  constructor(
    readonly engine: ChosenEngine,
    private readonly limit: number,
  ) {}

  /** Throws `BudgetTooSmallError` where a fit does not fit beside what is held. */
  take(fit: RunningFit): void {
    const needed = expectedPeak(memoryTerms(workload(this.engine.name, this.sessions, [...this.running, fit])));
    if (needed > this.limit) throw new BudgetTooSmallError(this.limit, needed);
    this.running.add(fit);
  }

  give(fit: RunningFit): void {
    this.running.delete(fit);
  }
}

class WorkerSession {
  private thread: ComputeThread | undefined;

  constructor(
    private readonly channel: Channel,
    private readonly facts: WorkerFacts,
    private readonly memory: Reservations,
    private readonly hooks: ServiceHooks,
  ) {}

  readonly handlers: Readonly<Record<string, Handler>> = {
    facts: async () => this.facts,

    open: async (params) => {
      const { threads } = checkParams(this.channel.peer, '"open"', openParams, params);
      if (this.thread) return;
      this.thread = new ComputeThread({ engine: this.facts.name, threads });
      this.memory.sessions++;
    },

    fit: async (_params, reply) => {
      const thread = this.opened();
      const { peer } = this.channel;
      const sent = await takeTensor(peer, reply.uploads, 'the job', MAX_JOB_BYTES);
      const job = checkParams(
        peer,
        '"fit"',
        fitJob,
        readJson(peer, 'the job', sent, (value) => value),
      );
      const sizes = jobFormats(job).map((format, expert) => [String(expert), matrixBytes(format)] as const);
      const stored = sizes.reduce((sum, [, bytes]) => sum + bytes, 0);
      const method = methodNamed(job.method);
      const { problem, options, solver, metric } = job;
      const matrices = metric
        ? sizes.map((_, expert) => [metricName(expert), expertBytes(problem, metric.form)] as const)
        : [];
      const { writesParts } = this.memory.engine;
      const form = metric?.fit ? metric.form : undefined;
      const fit = method.memory(problem, { ...options, solver, writesParts, metric: form });
      const rounds = job.tensors.some(({ written }) => written !== undefined);
      const running = {
        stored,
        metric: matrices.reduce((sum, [, bytes]) => sum + bytes, 0),
        fit: rounds ? withFeedback(fit, problem, job.format.transposed, metric?.form) : withRounding(fit, jobForm(job)),
      };
      this.memory.take(running);
      try {
        const data = collector(peer, new Map([...sizes, ...matrices]));
        for await (const piece of reply.uploads) data.put(piece);
        this.hooks.onLog?.(`${peer}: ${job.label}`);
        // Errors are ignored here: if the session is gone, the job ends with it.
        const onStep = (step: FitStep) => void reply.event({ kind: 'step', ...step }).catch(() => {});
        const get = data.finish();
        const all = {
          experts: sizes.map(([name]) => get(name)),
          ...(metric && { metric: matrices.map(([name]) => get(name)) }),
        };
        await reply.tensors(answer(thread.run(job, all, { onStep, handOver: true }), reply));
      } finally {
        this.memory.give(running);
      }
    },
  };

  private opened(): ComputeThread {
    if (!this.thread) throw new ProtocolError(this.channel.peer, 'it asks for work before "open"');
    return this.thread;
  }

  async close(): Promise<void> {
    if (!this.thread) return;
    await this.thread.close();
    this.memory.sessions--;
  }
}

/** Yields the tensors of each output and sends its event after them. */
async function* answer(outputs: AsyncIterable<JobOutput>, reply: Reply): AsyncGenerator<TensorPiece> {
  for await (const output of outputs) {
    if (output.kind === 'fitted') {
      const { shared, keptError, ...event } = output;
      for (const [factor, data] of Object.entries(shared)) yield wholePiece(sharedName(factor), data);
      await reply.event({ ...event, ...(keptError !== undefined && { keptError }) });
      continue;
    }
    const { tensors, ...event } = output;
    for (const [factor, data] of Object.entries(tensors)) yield wholePiece(expertName(output.expert, factor), data);
    await reply.event(event);
  }
}
