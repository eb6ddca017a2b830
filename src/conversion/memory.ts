/** What a run must hold in memory, and how it is arranged to stay within the budget. */
import { READ_BYTES } from '../checkpoint/tensor-reader.js';
import { BudgetTooSmallError } from '../errors.js';
import { denseParameters, type Problem } from '../factorization/problem.js';
import { formatBytes } from '../format.js';
import { type GroupPlan, sourceBytes } from './groups.js';
import type { Settings } from './settings.js';

const MIB = 2 ** 20;

/** Node, ONNX Runtime and their heaps, measured idle with one worker (bench/memory.ts), and each further worker's share. */
const BASE_BYTES = 190 * MIB;
const WORKER_BYTES = 60 * MIB;

/** The allocators round up, and freed memory returns late: measured peaks stay below this multiple of what is counted. */
const OVERHEAD = 1.3;

/** A step's working set without a wish for more: large enough for full GEMM speed, the same on every machine. */
const BATCH_BYTES = 256 * MIB;

/** Below this many multiply-adds a matrix product of a group does not fill more than one core. */
const SMALL_GROUP = 1e9;

export interface MemoryPlan {
  /** Groups fitted side by side, each in a worker of its own. */
  readonly workers: number;
  readonly threadsPerWorker: number;
  readonly batchExperts: number;
  /** The decoded targets are kept for the whole fit. */
  readonly holdTargets: boolean;
  /** Source bytes of groups that may be read and not yet written. */
  readonly groupBytes: number;
  /** Expected peak, bytes. */
  readonly expectedBytes: number;
}

/** Throws `BudgetTooSmallError` naming the smallest budget. */
export function planMemory(groups: readonly GroupPlan[], settings: Settings): MemoryPlan {
  const small = groups.every(({ problem }) => denseParameters(problem) * problem.rank < SMALL_GROUP);
  const workers = small ? Math.max(1, Math.min(settings.threads, groups.length)) : 1;
  const wanted: Arrangement[] = [
    { workers, batchBytes: BATCH_BYTES, holdTargets: true, prefetch: 1 },
    { workers, batchBytes: BATCH_BYTES, holdTargets: false, prefetch: 1 },
    { workers: 1, batchBytes: BATCH_BYTES, holdTargets: false, prefetch: 1 },
    { workers: 1, batchBytes: BATCH_BYTES, holdTargets: false, prefetch: 0 },
    { workers: 1, batchBytes: 0, holdTargets: false, prefetch: 0 },
  ];
  const plans = wanted.map((arrangement) => arrange(groups, settings, arrangement));
  const fitting = plans.find(({ expectedBytes }) => expectedBytes <= settings.maxMemory);
  if (!fitting) {
    const smallest = Math.min(...plans.map(({ expectedBytes }) => expectedBytes));
    throw new BudgetTooSmallError(formatBytes(settings.maxMemory), `${Math.ceil(smallest / MIB)}MiB`);
  }
  return fitting;
}

interface Arrangement {
  workers: number;
  batchBytes: number;
  holdTargets: boolean;
  prefetch: number;
}

function arrange(groups: readonly GroupPlan[], settings: Settings, wish: Arrangement): MemoryPlan {
  const { workers, holdTargets, prefetch } = wish;
  const largest = Math.max(0, ...groups.map(sourceBytes));
  const perExpert = Math.max(1, ...groups.map(({ problem }) => batchBytesPerExpert(problem)));
  const most = Math.max(1, ...groups.map(({ problem }) => problem.experts));
  const batchExperts = Math.min(most, settings.batchExperts ?? Math.max(1, Math.floor(wish.batchBytes / perExpert)));
  const solver = Math.max(0, ...groups.map(({ problem }) => solverBytes(problem, batchExperts, holdTargets, settings)));
  const groupBytes = largest * (workers + prefetch);
  const counted = workers * solver + groupBytes + 4 * READ_BYTES;
  return {
    workers,
    threadsPerWorker: Math.max(1, Math.floor(settings.threads / workers)),
    batchExperts,
    holdTargets,
    groupBytes,
    expectedBytes: Math.ceil(BASE_BYTES + workers * WORKER_BYTES + OVERHEAD * counted),
  };
}

/** f32 values alive at once for one expert of a batch: S, F, f′, D; W, R; A, WFᵀ; G, X and their products. */
const batchBytesPerExpert = ({ rows: p, cols: d, rank: r }: Problem): number =>
  4 * (5 * r * d + 3 * p * d + 3 * p * r + 6 * r * r);

function solverBytes(problem: Problem, batchExperts: number, holdTargets: boolean, { solver }: Settings): number {
  const { experts: n, rows: p, cols: d, bases: m, rank: r } = problem;
  const batch = Math.min(n, batchExperts) * batchBytesPerExpert(problem);
  const targets = holdTargets ? 4 * n * p * d : 0;
  // varpro: B, M and the ones before them, the gradient, and what Muon makes of it. adam: thrice A and B, twice over.
  const bases = 4 * m * r * d * (solver === 'varpro' ? 9 : 8);
  const perExpert = 4 * n * (solver === 'varpro' ? r * r : 7 * p * r);
  return batch + targets + bases + perExpert;
}
