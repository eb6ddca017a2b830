/** What a run must hold in memory, and how it is arranged to stay within the budget. */

import type { ChosenEngine } from '../engine/choose-engine.js';
import { DEFAULT_ENGINE, type EngineName } from '../engine/create-engine.js';
import type { Engine } from '../engine/engine.js';
import { BudgetTooSmallError } from '../errors.js';
import { formatBytes } from '../format.js';
import type { MethodProblem } from '../methods/method.js';
import { READ_BYTES } from '../sources/files.js';
import { DEFAULT_CREDIT_BYTES } from '../transport/limits.js';
import { type GroupPlan, sourceBytes } from './group-plan.js';
import type { Settings } from './settings.js';

const MIB = 2 ** 20;

/** Node and this program, and each worker with its compiled programs; measured (bench/memory.ts prints the peaks). */
const BASE_BYTES = 120 * MIB;
const WORKER_BYTES = 110 * MIB;
/** An engine's own library beyond that, with a driver; measured on SwiftShader and on TensorFlow's CPU. */
const ENGINE_BYTES: Record<EngineName, number> = {
  'onnx-cpu': 0,
  'onnx-webgpu': 400 * MIB,
  'onnx-cuda': 400 * MIB,
  tensorflow: 350 * MIB,
};

/** Headers, index, plan, places and hashes, per tensor of the source; measured at 50 000 tensors. */
const TENSOR_BYTES = 4000;

/** Blocks that are read and not yet written: two that are being written, one that is being read. */
export const PASS_THROUGH_BLOCKS = 3;
/** Those, and a block's numbers where it is decoded. */
const PASS_THROUGH_BYTES = (PASS_THROUGH_BLOCKS + 1) * READ_BYTES;

/** Buffers come and go; at times a step holds a little more than is counted. */
const OVERHEAD = 1.15;
/**
 * The C allocator keeps much of what is freed in pieces below its 32 MiB mapping threshold. Measured peaks stay below this
 * share of what is counted, and below this much a worker, since larger buffers go back at once. (With
 * MALLOC_MMAP_THRESHOLD_=131072 in the environment it keeps almost nothing.)
 */
const FRAGMENTED_SHARE = 0.55;
const FRAGMENTED_BYTES = 256 * MIB;

/**
 * A step's working set without a wish for more: large enough for full GEMM speed, the same on every machine. A GPU needs more
 * at once to be kept busy.
 */
const BATCH_BYTES: Record<Engine['kind'], number> = { cpu: 128 * MIB, gpu: 2048 * MIB };
/** Smaller batches than this waste time on the calls themselves; other economies come first. */
const LEAST_BATCH = 4;

/** Below this many multiply-adds a matrix product of a group does not fill more than one core. */
const SMALL_GROUP = 1e9;

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
  /** Expected peak, bytes. */
  readonly expectedBytes: number;
}

/** What other machines fit with. */
export interface RemoteFitters {
  /** Of all of them. */
  readonly engine: ChosenEngine;
  /** CPU threads of each machine. */
  readonly threads: readonly number[];
}

/** What the connection to one of them holds at most, both ways. */
const CONNECTION_BYTES = 2 * DEFAULT_CREDIT_BYTES;

/**
 * Throws `BudgetTooSmallError` naming the smallest budget, or `TensorTooLargeError` where the device's limit on tensors
 * rules a group out. What a device holds is counted as if it were held here: with memory that is shared, it is.
 */
export function planMemory(
  groups: readonly GroupPlan[],
  settings: Settings,
  tensors: number,
  engine: ChosenEngine,
  remote?: RemoteFitters,
): MemoryPlan {
  const small = groups.every((group) => groupProduct(group) < SMALL_GROUP);
  // Threads of the CPU can be shared out; other engines are there once.
  const workers = small && engine.name === DEFAULT_ENGINE ? Math.max(1, Math.min(settings.threads, groups.length)) : 1;
  if (remote) return planRemote(groups, settings, BASE_BYTES + tensors * TENSOR_BYTES, remote, small);
  const fixedBytes = BASE_BYTES + tensors * TENSOR_BYTES + ENGINE_BYTES[engine.name];
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
    arrangements.map((arrangement) => arrange(groups, settings, arrangement, engine, fixedBytes, mostExperts)),
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
  fixedBytes: number,
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
    const counted = groupBytes + workers * CONNECTION_BYTES + PASS_THROUGH_BYTES;
    return {
      workers,
      threadsPerWorker,
      batchExperts: Math.max(1, Math.min(...batches)),
      holdTargets: true,
      holdParts: false,
      groupBytes,
      expectedBytes: Math.ceil(fixedBytes + OVERHEAD * counted),
    };
  };
  const most = Math.max(1, Math.min(sessions, groups.length));
  const plans = Array.from({ length: most }, (_, i) => plan(most - i, 1));
  return firstThatFits([...plans, plan(1, 0)], settings);
}

/** Bytes that fitting one group takes, beside the process itself: what a worker compares with its own budget. */
export function fitBytes(
  { method, problem }: MethodProblem,
  stored: number,
  { batchExperts, holdTargets, solver }: { batchExperts: number; holdTargets: boolean; solver: string },
): number {
  const counted =
    stored + method.stateBytes(problem, { holdTargets, solver }) + batchExperts * method.batchBytes(problem);
  return Math.ceil(
    BASE_BYTES + WORKER_BYTES + OVERHEAD * counted + Math.min(FRAGMENTED_SHARE * counted, FRAGMENTED_BYTES),
  );
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
  arrangement: Arrangement,
  engine: ChosenEngine,
  fixedBytes: number,
  mostExperts: number,
): MemoryPlan {
  const { workers, holdTargets, prefetch, leastBatch, holdParts = false } = arrangement;
  const parts = holdParts ? Math.max(...groups.map((group) => group.groups)) : 1;
  const most = (measure: (group: GroupPlan) => number): number =>
    groups.reduce((top, group) => Math.max(top, measure(group)), 0);
  const experts = most(({ problem }) => problem.experts);
  const perExpert = most(({ method, problem }) => method.batchBytes(problem));
  const groupBytes = most(sourceBytes) * Math.max(workers + prefetch, parts);
  const state = most(({ method, problem }) => method.stateBytes(problem, { holdTargets, solver: settings.solver }));
  const expected = (batch: number): number => {
    const solver = state + batch * perExpert;
    const counted = workers * solver + groupBytes + PASS_THROUGH_BYTES;
    const fragmented = workers * Math.min(FRAGMENTED_SHARE * (counted / workers), FRAGMENTED_BYTES);
    return Math.ceil(fixedBytes + workers * WORKER_BYTES + OVERHEAD * counted + fragmented);
  };
  const wanted = Math.min(
    experts,
    mostExperts,
    settings.batchExperts ?? Math.min(...groups.map((group) => usualBatch(group, engine.kind))),
  );
  const least = Math.min(wanted, leastBatch);
  let batchExperts = Math.max(1, wanted);
  while (batchExperts > least && expected(batchExperts) > settings.maxMemory) batchExperts--;
  return {
    workers,
    threadsPerWorker: Math.max(1, Math.floor(settings.threads / workers)),
    batchExperts,
    holdTargets,
    holdParts,
    groupBytes,
    expectedBytes: expected(batchExperts),
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
