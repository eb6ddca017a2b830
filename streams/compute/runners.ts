import type { MemoryPlan } from '../../src/conversion/memory-plan.js';
import type { EngineName } from '../../src/engine/create-engine.js';
import type { PeerOptions } from '../machines/peer-options.js';
import { type JobRunner, localRunner, RunnerPool } from './job-runner.js';
import { connectRunners, type RemoteWorkers } from './remote-runner.js';

export interface RunnersOptions {
  readonly engine: EngineName;
  readonly memory: Pick<MemoryPlan, 'workers' | 'threadsPerWorker'>;
  /** The machines that fit, where it is not this one. */
  readonly remote: RemoteWorkers | undefined;
  readonly peers: PeerOptions;
  /** Aborting it stops the runners. */
  readonly signal: AbortSignal;
}

/** Runs `body` with as many runners as the plan has. They end with it. */
export async function* withRunners<T>(
  { engine, memory, remote, peers, signal }: RunnersOptions,
  body: (runners: RunnerPool) => AsyncIterable<T>,
): AsyncGenerator<T> {
  const { workers, threadsPerWorker: threads } = memory;
  const local = (): JobRunner => localRunner({ engine, threads }, signal);
  const runners = remote
    ? new RunnerPool(await connectRunners(remote, workers, threads, peers, signal), local)
    : new RunnerPool(Array.from({ length: workers }, local));
  try {
    yield* body(runners);
  } finally {
    await runners.close();
  }
}
