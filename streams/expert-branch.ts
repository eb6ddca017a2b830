/** The branch of the dataflow that factorises: source → group → normalise → factorise → fold σ. */
import { Readable } from 'node:stream';
import type { TensorReader } from '../src/checkpoint/tensor-reader.js';
import { type GroupPlan, sourceBytes } from '../src/conversion/groups.js';
import type { MemoryPlan } from '../src/conversion/memory.js';
import type { RunSettings } from '../src/conversion/settings.js';
import { InterruptedError } from '../src/errors.js';
import { ByteBudget } from './byte-budget.js';
import type { Written } from './compute.js';
import { type FactoriseOptions, factorise } from './factorise.js';
import { groupExperts } from './group-experts.js';
import { normalise, type Sigmas } from './normalise.js';
import type { RunHooks } from './progress.js';
import { readExperts } from './read-experts.js';
import type { Factorization } from './records.js';
import { WorkerPool } from './worker-pool.js';

/** Reads every group once, so that bad weights are found before hours of work, and learns each σ on the way. */
export async function measureGroups(
  groups: readonly GroupPlan[],
  reader: TensorReader,
  { groupBytes }: MemoryPlan,
  { onProgress, signal }: RunHooks,
): Promise<Sigmas> {
  const budget = new ByteBudget(groupBytes);
  const sigmas = new Map<GroupPlan, number>();
  onProgress?.({
    kind: 'phase',
    phase: 'check',
    groups: groups.length,
    bytes: groups.reduce((sum, group) => sum + sourceBytes(group), 0),
  });
  for await (const { group, sigma } of normalise(groupExperts(readExperts(groups, reader, budget)))) {
    if (signal?.aborted) throw new InterruptedError();
    sigmas.set(group, sigma);
    budget.release(sourceBytes(group));
    onProgress?.({ kind: 'checked', groups: sigmas.size });
  }
  return sigmas;
}

export interface FitOptions {
  readonly groups: readonly GroupPlan[];
  readonly reader: TensorReader;
  readonly memory: MemoryPlan;
  readonly settings: RunSettings;
  readonly sigmas: Sigmas;
  readonly written: Written;
  readonly hooks: RunHooks;
  /** Aborting it stops the workers. */
  readonly signal: AbortSignal;
}

/** Fits the groups, reading the next while one is being fitted. Ending it, early or not, stops the workers. */
export async function* fitGroups(options: FitOptions): AsyncGenerator<Factorization> {
  const { groups, reader, memory, settings, sigmas, written, hooks, signal } = options;
  const budget = new ByteBudget(memory.groupBytes);
  const pool = new WorkerPool(memory.workers, { engine: settings.engine, threads: memory.threadsPerWorker }, signal);
  const source = Readable.from(readExperts(groups, reader, budget), { objectMode: true, highWaterMark: 1 });
  const onStep: FactoriseOptions['onStep'] = (progress) => hooks.onProgress?.({ kind: 'step', ...progress });
  const onFold: FactoriseOptions['onFold'] = (progress) => hooks.onProgress?.({ kind: 'fold', ...progress });
  try {
    const normalised = normalise(groupExperts(source), sigmas);
    yield* factorise(normalised, { pool, budget, settings, memory, written, onStep, onFold });
  } finally {
    source.destroy();
    await pool.close();
  }
}
