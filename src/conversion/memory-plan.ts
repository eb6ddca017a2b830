/** How a run is arranged to stay within its memory budget; memory-terms.ts has what an arrangement holds. */

import type { ChosenEngine } from '../engine/choose-engine.js';
import { DEFAULT_ENGINE } from '../engine/create-engine.js';
import type { Engine } from '../engine/engine.js';
import { BudgetTooSmallError } from '../errors.js';
import { formatBytes } from '../format.js';
import type { FitMemory, MethodProblem } from '../methods/method.js';
import { type GroupPlan, sourceBytes } from './group-plan.js';
import { expectedPeak, type MemoryTerms, MIB, memoryTerms } from './memory-terms.js';
import type { Settings } from './settings.js';

/**
 * A step's working set without a wish for more: large enough for full GEMM speed, the same on every machine. A GPU needs more
 * at once to be kept busy.
 */
const BATCH_BYTES: Record<Engine['kind'], number> = { cpu: 128 * MIB, gpu: 2048 * MIB };
/** Smaller batches than this waste time on the calls themselves; other economies come first. */
const LEAST_BATCH = 4;

/** Below this many multiply-adds a matrix product of a group does not fill more than one core. */
const SMALL_GROUP = 1e9;

/** How a run is arranged so that it stays within its memory budget. */
export interface MemoryPlan {
  /** Groups fitted side by side, each in a worker of its own. */
  readonly workers: number;
  readonly threadsPerWorker: number;
  readonly batchExperts: number;
  /** The decoded targets are kept for the whole fit. */
  readonly holdTargets: boolean;
  /** The parts of a layer and projection are all in memory at once, for their σ; otherwise they are read twice. */
  readonly holdParts: boolean;
  /** Source bytes of groups that may be read and not yet written. */
  readonly groupBytes: number;
  /** What memory is expected to hold at the peak. */
  readonly terms: MemoryTerms;
  /** Expected peak, bytes: the sum of the terms. */
  readonly expectedBytes: number;
}

/** What other machines fit with. */
export interface RemoteFitters {
  /** Of all of them. */
  readonly engine: ChosenEngine;
  /** CPU threads of each machine. */
  readonly threads: readonly number[];
}

/**
 * Throws `BudgetTooSmallError` naming the smallest budget, or `TensorTooLargeError` where the device's limit on tensors
 * rules a group out. What a device holds is counted as if it were held here: with memory that is shared, it is.
 * @param tensors of the source
 */
export function planMemory(
  groups: readonly GroupPlan[],
  settings: Settings,
  tensors: number,
  engine: ChosenEngine,
  remote?: RemoteFitters,
): MemoryPlan {
  const small = groups.every((group) => groupProduct(group) < SMALL_GROUP);
  if (remote) return planRemote(groups, settings, tensors, remote, small);
  // Threads of the CPU can be shared out; other engines are there once.
  const workers = small && engine.name === DEFAULT_ENGINE ? Math.max(1, Math.min(settings.threads, groups.length)) : 1;
  const mostExperts = Math.min(...groups.map(({ method, problem }) => method.largestBatch(problem, engine)));
  // From the fastest to the most frugal; each gives up one thing.
  const arrangements: Arrangement[] = [
    { workers, holdTargets: true, prefetch: 1, leastBatch: LEAST_BATCH, holdParts: true },
    { workers, holdTargets: true, prefetch: 1, leastBatch: LEAST_BATCH },
    { workers, holdTargets: false, prefetch: 1, leastBatch: LEAST_BATCH },
    { workers: 1, holdTargets: false, prefetch: 1, leastBatch: LEAST_BATCH },
    { workers: 1, holdTargets: false, prefetch: 0, leastBatch: LEAST_BATCH },
    { workers: 1, holdTargets: false, prefetch: 0, leastBatch: 1 },
  ];
  return firstThatFits(
    arrangements.map((arrangement) => arrange(groups, settings, arrangement, tensors, engine, mostExperts)),
    settings,
  );
}

function firstThatFits(plans: readonly MemoryPlan[], settings: Settings): MemoryPlan {
  const fitting = plans.find(({ expectedBytes }) => expectedBytes <= settings.maxMemory);
  if (!fitting) {
    const smallest = Math.min(...plans.map(({ expectedBytes }) => expectedBytes));
    throw new BudgetTooSmallError(formatBytes(settings.maxMemory), `${Math.ceil(smallest / MIB)}MiB`);
  }
  return fitting;
}

/**
 * Where other machines fit, this one holds a group for each of them, and one read ahead, while it is under way. They are as many
 * as fit the budget. What a fit itself takes is theirs to bound (streams/compute/worker.ts).
 */
function planRemote(
  groups: readonly GroupPlan[],
  settings: Settings,
  tensors: number,
  { engine, threads }: RemoteFitters,
  small: boolean,
): MemoryPlan {
  const threadsPerWorker = small && engine.name === DEFAULT_ENGINE ? 1 : settings.threads;
  const sessions = threads.reduce((sum, count) => sum + Math.max(1, Math.floor(count / threadsPerWorker)), 0);
  const largest = groups.reduce((top, group) => Math.max(top, sourceBytes(group)), 0);
  const batches = groups.map((group) =>
    Math.min(
      group.problem.experts,
      group.method.largestBatch(group.problem, engine),
      settings.batchExperts ?? usualBatch(group, engine.kind),
    ),
  );
  const plan = (workers: number, prefetch: number): MemoryPlan => {
    const groupBytes = largest * (workers + prefetch);
    const terms = memoryTerms({
      tensors,
      connections: Array<number>(workers).fill(largest),
      groupBytes,
      copies: true,
    });
    return {
      workers,
      threadsPerWorker,
      batchExperts: Math.max(1, Math.min(...batches)),
      holdTargets: true,
      holdParts: false,
      groupBytes,
      terms,
      expectedBytes: expectedPeak(terms),
    };
  };
  const most = Math.max(1, Math.min(sessions, groups.length));
  const plans = Array.from({ length: most }, (_, i) => plan(most - i, 1));
  return firstThatFits([...plans, plan(1, 0)], settings);
}

interface Arrangement {
  workers: number;
  holdTargets: boolean;
  /** See `MemoryPlan`. */
  holdParts?: boolean;
  /** Groups read ahead. */
  prefetch: number;
  /** Experts a batch must at least have. */
  leastBatch: number;
}

/** The largest batch that the arrangement leaves room for, and the memory that takes. */
function arrange(
  groups: readonly GroupPlan[],
  settings: Settings,
  { workers, holdTargets, prefetch, leastBatch, holdParts = false }: Arrangement,
  tensors: number,
  engine: ChosenEngine,
  mostExperts: number,
): MemoryPlan {
  const parts = holdParts ? Math.max(...groups.map((group) => group.groups)) : 1;
  const most = (measure: (group: GroupPlan) => number): number =>
    groups.reduce((top, group) => Math.max(top, measure(group)), 0);
  const groupBytes = most(sourceBytes) * Math.max(workers + prefetch, parts);
  const { solver } = settings;
  const termsOf = (batchExperts: number): MemoryTerms => {
    const all = groups.map(({ method, problem }) => method.memory(problem, { solver, holdTargets, batchExperts }));
    const largest = (term: keyof FitMemory): number => all.reduce((top, fit) => Math.max(top, fit[term]), 0);
    const fit: FitMemory = { targets: largest('targets'), state: largest('state'), batch: largest('batch') };
    const fits = Array<FitMemory>(workers).fill(fit);
    return memoryTerms({ tensors, engine: engine.name, threads: workers, groupBytes, fits, copies: true });
  };
  const wanted = Math.min(
    most(({ problem }) => problem.experts),
    mostExperts,
    settings.batchExperts ?? Math.min(...groups.map((group) => usualBatch(group, engine.kind))),
  );
  const least = Math.min(wanted, leastBatch);
  let batchExperts = Math.max(1, wanted);
  while (batchExperts > least && expectedPeak(termsOf(batchExperts)) > settings.maxMemory) batchExperts--;
  const terms = termsOf(batchExperts);
  return {
    workers,
    threadsPerWorker: Math.max(1, Math.floor(settings.threads / workers)),
    batchExperts,
    holdTargets,
    holdParts,
    groupBytes,
    terms,
    expectedBytes: expectedPeak(terms),
  };
}

/** Experts a batch, where memory is plentiful. */
export const usualBatch = ({ method, problem }: MethodProblem, kind: Engine['kind']): number =>
  Math.max(1, Math.floor(BATCH_BYTES[kind] / method.batchBytes(problem)));

/** Multiply-adds of one matrix product with all the experts of a group. */
function groupProduct({ method, problem }: MethodProblem): number {
  const { rows, cols, rank } = method.product(problem);
  return problem.experts * rows * cols * rank;
}
