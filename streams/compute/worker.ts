import { availableParallelism, totalmem } from 'node:os';
import { matrixBytes } from '../../src/checkpoint/stored-matrix.js';
import { fitBytes } from '../../src/conversion/memory-plan.js';
import { chooseEngine, type EngineChoice } from '../../src/engine/choose-engine.js';
import { BudgetTooSmallError, ProtocolError } from '../../src/errors.js';
import { formatBytes } from '../../src/format.js';
import type { FitStep } from '../../src/methods/method.js';
import { methodNamed } from '../../src/methods/registry.js';
import type { Channel } from '../../src/transport/channel.js';
import { checkParams } from '../../src/transport/check-params.js';
import { type Listener, listen } from '../../src/transport/listen.js';
import { answerRequests, type Handler, type Reply } from '../../src/transport/requests.js';
import { type TensorPiece, wholePiece } from '../../src/transport/tensor-piece.js';
import { collector } from '../machines/collect.js';
import type { ListenAt, ServiceHooks } from '../machines/peer-options.js';
import { ComputeThread } from './compute-thread.js';
import { fitJob, type JobOutput } from './job.js';
import { expertName, openParams, rateParams, sharedName, WORKER_SERVICE, type WorkerFacts } from './worker-protocol.js';

export interface WorkerOptions {
  readonly engine?: EngineChoice;
  /** CPU threads to offer, over all sessions; undefined: all. */
  readonly threads?: number;
  /** Peak resident memory, bytes; undefined: 80 % of the machine's. */
  readonly maxMemory?: number;
}

/** Fits groups for whoever connects: one a session, each session in a thread of its own. */
export async function work(
  { engine = 'onnx-cpu', threads = availableParallelism(), maxMemory = Math.floor(0.8 * totalmem()) }: WorkerOptions,
  at: ListenAt,
  hooks: ServiceHooks = {},
): Promise<Listener> {
  const chosen = await chooseEngine(engine, threads);
  const { name, device, kind, maxTensorBytes } = chosen;
  const facts: WorkerFacts = { name, device, kind, threads, ...(maxTensorBytes !== undefined && { maxTensorBytes }) };
  const memory = new Reservations(maxMemory);
  return listen({ ...at, service: WORKER_SERVICE, ...hooks }, async (channel) => {
    const session = new WorkerSession(channel, facts, memory, hooks);
    try {
      await answerRequests(channel, channel, session.handlers);
    } finally {
      await session.close();
    }
  });
}

/** Memory of fits that are under way, over all sessions. */
class Reservations {
  private held = 0;
  constructor(private readonly limit: number) {}

  /** Throws `BudgetTooSmallError` where it does not fit beside what is held. */
  take(bytes: number): void {
    if (this.held + bytes > this.limit)
      throw new BudgetTooSmallError(formatBytes(this.limit), formatBytes(this.held + bytes));
    this.held += bytes;
  }

  give(bytes: number): void {
    this.held -= bytes;
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
      this.thread ??= new ComputeThread({ engine: this.facts.name, threads });
    },

    rate: async (params) => {
      const shape = checkParams(this.channel.peer, '"rate"', rateParams, params);
      return this.opened().call('gemmRate', [shape]);
    },

    fit: async (params, reply) => {
      const thread = this.opened();
      const job = checkParams(this.channel.peer, '"fit"', fitJob, params);
      const stored = matrixBytes(job.format) * job.problem.experts;
      const method = methodNamed(job.method);
      const needed = fitBytes({ method, problem: job.problem }, stored, { ...job.options, solver: job.solver });
      this.memory.take(needed);
      try {
        const names = job.tensors.map((_, expert) => String(expert));
        const bytes = matrixBytes(job.format);
        const experts = collector(this.channel.peer, new Map(names.map((name) => [name, bytes])));
        for await (const piece of reply.uploads) experts.put(piece);
        this.hooks.onLog?.(`${this.channel.peer}: ${job.label}`);
        // A session that is gone has nobody to tell; the job ends with it.
        const onStep = (step: FitStep) => void reply.event({ kind: 'step', ...step }).catch(() => {});
        const all = names.map(experts.finish());
        await reply.tensors(answer(thread.run(job, all, { onStep, handOver: true }), reply));
      } finally {
        this.memory.give(needed);
      }
    },
  };

  private opened(): ComputeThread {
    if (!this.thread) throw new ProtocolError(this.channel.peer, 'it asks for work before "open"');
    return this.thread;
  }

  async close(): Promise<void> {
    await this.thread?.close();
  }
}

/** The tensors of each output, and after them what there is to say of it. */
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
