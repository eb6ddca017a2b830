import { availableParallelism, totalmem } from 'node:os';
import { matrixBytes } from '../../src/checkpoint/stored-matrix.js';
import { fitBytes } from '../../src/conversion/memory-plan.js';
import { chooseEngine, type EngineChoice } from '../../src/engine/choose-engine.js';
import { BudgetTooSmallError, ProtocolError } from '../../src/errors.js';
import { formatBytes } from '../../src/format.js';
import { mobe } from '../../src/methods/mobe/mobe.js';
import type { Channel } from '../../src/transport/channel.js';
import { checkParams } from '../../src/transport/check-params.js';
import { type Listener, listen } from '../../src/transport/listen.js';
import { answerRequests, type Handler } from '../../src/transport/requests.js';
import { wholePiece } from '../../src/transport/tensor-piece.js';
import { collector } from '../machines/collect.js';
import type { ListenAt, ServiceHooks } from '../machines/peer-options.js';
import type { FitTask } from './compute.js';
import { ComputeWorker } from './worker-pool.js';
import {
  type FitParams,
  fitParams,
  foldParams,
  openParams,
  rateParams,
  WORKER_SERVICE,
  type WorkerFacts,
} from './worker-protocol.js';

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
  private worker: ComputeWorker | undefined;
  private taken = 0;
  /** Of the fitted group; 0 while there is none. */
  private experts = 0;

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
      this.worker ??= new ComputeWorker({ engine: this.facts.name, threads });
    },

    rate: async (params) => {
      const shape = checkParams(this.channel.peer, '"rate"', rateParams, params);
      return this.opened().call('gemmRate', [shape]);
    },

    fit: async (params, reply) => {
      const worker = this.opened();
      const task = checkParams(this.channel.peer, '"fit"', fitParams, params);
      const bytes = matrixBytes(task.format);
      const stored = bytes * task.problem.experts;
      const needed = fitBytes({ method: mobe, problem: task.problem }, stored, {
        ...task.options,
        solver: task.solver,
      });
      this.release();
      this.experts = 0;
      this.memory.take(needed);
      this.taken = needed;
      const names = Array.from({ length: task.problem.experts }, (_, expert) => String(expert));
      const experts = collector(this.channel.peer, new Map(names.map((name) => [name, bytes])));
      for await (const piece of reply.uploads) experts.put(piece);
      this.hooks.onLog?.(`${this.channel.peer}: ${task.options.label}`);
      const { bases, coefficients, ...result } = await worker.call(
        'fit',
        [fitTask(task, names.map(experts.finish()))],
        {
          // A session that is gone has nobody to tell; the fit ends with it.
          onStep: (step) => void reply.event(step).catch(() => {}),
        },
      );
      this.experts = task.problem.experts;
      await reply.tensors([wholePiece('bases', bases), wholePiece('coefficients', coefficients)]);
      return result;
    },

    fold: async (params, reply) => {
      const { expert, written } = checkParams(this.channel.peer, '"fold"', foldParams, params);
      const worker = this.opened();
      if (expert >= this.experts)
        throw new ProtocolError(
          this.channel.peer,
          this.experts ? `it asks for expert ${expert} of ${this.experts}` : 'it asks for an expert of no fitted group',
        );
      const { data, ...errors } = await worker.call('fold', [expert, written]);
      await reply.tensors([wholePiece('data', data)]);
      return errors;
    },
  };

  private opened(): ComputeWorker {
    if (!this.worker) throw new ProtocolError(this.channel.peer, 'it asks for work before "open"');
    return this.worker;
  }

  private release(): void {
    this.memory.give(this.taken);
    this.taken = 0;
  }

  async close(): Promise<void> {
    await this.worker?.close();
    this.release();
  }
}

function fitTask({ options, ...task }: FitParams, experts: FitTask['experts']): FitTask {
  return { ...task, experts, options: { ...options, learningRate: options.learningRate } };
}
