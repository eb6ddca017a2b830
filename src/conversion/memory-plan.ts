/** Arranges a run so that it stays within its memory budget. memory-terms.ts has the memory that an arrangement takes. */

import { floatBytes } from '../checkpoint/dtype.js';
import { floatDtypeOf } from '../checkpoint/encoding.js';
import type { ChosenEngine } from '../engine/choose-engine.js';
import { DEFAULT_ENGINE } from '../engine/create-engine.js';
import type { Engine } from '../engine/engine.js';
import { BudgetTooSmallError } from '../errors.js';
import { withRounding } from '../methods/factor-storage.js';
import { withFeedback } from '../methods/input-metric.js';
import type { FitMemory, MethodProblem, MetricForm } from '../methods/method.js';
import { groupUnits } from './group-places.js';
import { type GroupPlan, sourceBytes } from './group-plan.js';
import { expectedPeak, type MemoryTerms, MIB, memoryTerms } from './memory-terms.js';
import { jobMetric, metricBytes, type PlannedMetric, weighingBytes } from './metric-plan.js';
import { holdsWeights, type Settings } from './settings.js';

/**
 * The working set of a step's batch, unless the user sets the batch. It is large enough for full GEMM speed and the same on every
 * machine. A GPU needs larger batches to be kept busy.
 */
const BATCH_BYTES: Record<Engine['kind'], number> = { cpu: 128 * MIB, gpu: 2048 * MIB };
/** Smaller batches than this waste time on the calls themselves, so other ways to save memory come first. */
const LEAST_BATCH = 4;

/** A matrix product with fewer multiply-adds than this does not keep more than one core busy. */
const SMALL_GROUP = 1e9;

/** The arrangement of a run that stays within its memory budget. */
export interface MemoryPlan {
  /** The number of groups that are fitted at the same time, each in a worker of its own. */
  readonly workers: number;
  readonly threadsPerWorker: number;
  readonly batchExperts: number;
  /** The decoded targets are kept for the whole fit. */
  readonly holdTargets: boolean;
  /** All parts of a layer and projection are in memory at once, to compute their σ. Otherwise they are read twice. */
  readonly holdParts: boolean;
  /** Source bytes of groups that may be read and not yet written. */
  readonly groupBytes: number;
  /** The expected peak by what holds the memory. */
  readonly terms: MemoryTerms;
  /** Expected peak, bytes: the sum of the terms. */
  readonly expectedBytes: number;
}

/** The engine and the threads of the machines that fit for this one. */
export interface RemoteFitters {
  /** The engine of all machines. */
  readonly engine: ChosenEngine;
  /** The number of CPU threads of each machine. */
  readonly threads: readonly number[];
}

/**
 * Plans a run's memory. Throws `BudgetTooSmallError` with the smallest budget that would do, or `TensorTooLargeError` if a group
 * exceeds the device's limit on tensors. Device memory counts as memory of this process, because some devices share it.
 * @param tensors the number of the source's tensors
 * @param weighing the metric that fits have, if they have one
 */
export function planMemory(
  groups: readonly GroupPlan[],
  settings: Settings,
  tensors: number,
  engine: ChosenEngine,
  remote?: RemoteFitters,
  weighing?: PlannedMetric,
): MemoryPlan {
  const small = groups.every((group) => group.method.oneThread || groupProduct(group) < SMALL_GROUP);
  if (remote) return planRemote(groups, settings, tensors, remote, small, weighing);
  // The CPU's threads can be divided among workers. Another engine has one device.
  const workers = small && engine.name === DEFAULT_ENGINE ? Math.max(1, Math.min(settings.threads, groups.length)) : 1;
  const mostExperts = Math.min(
    ...groups.map((group) => group.method.largestBatch(group.problem, engine, formOf(group, weighing))),
  );
  // From the fastest to the one that needs the least memory. Each differs from the one before it in one setting.
  const arrangements: Arrangement[] = [
    { workers, holdTargets: true, prefetch: 1, leastBatch: LEAST_BATCH, holdParts: true },
    { workers, holdTargets: true, prefetch: 1, leastBatch: LEAST_BATCH },
    { workers, holdTargets: false, prefetch: 1, leastBatch: LEAST_BATCH },
    { workers: 1, holdTargets: false, prefetch: 1, leastBatch: LEAST_BATCH },
    { workers: 1, holdTargets: false, prefetch: 0, leastBatch: LEAST_BATCH },
    { workers: 1, holdTargets: false, prefetch: 0, leastBatch: 1 },
  ];
  return firstThatFits(
    arrangements.map((arrangement) => arrange(groups, settings, arrangement, tensors, engine, mostExperts, weighing)),
    settings,
  );
}

function firstThatFits(plans: readonly MemoryPlan[], settings: Settings): MemoryPlan {
  const fitting = plans.find(({ expectedBytes }) => expectedBytes <= settings.maxMemory);
  if (!fitting) {
    const smallest = Math.min(...plans.map(({ expectedBytes }) => expectedBytes));
    throw new BudgetTooSmallError(settings.maxMemory, smallest);
  }
  return fitting;
}

/**
 * Plans the memory of a run whose groups are fitted on other machines. This machine holds one group for each session with them,
 * and one that is read ahead if the budget allows. The plan has as many sessions as fit the budget. The other machines bound the
 * memory of the fits themselves (streams/compute/worker.ts).
 */
function planRemote(
  groups: readonly GroupPlan[],
  settings: Settings,
  tensors: number,
  { engine, threads }: RemoteFitters,
  small: boolean,
  weighing?: PlannedMetric,
): MemoryPlan {
  const threadsPerWorker = small && engine.name === DEFAULT_ENGINE ? 1 : settings.threads;
  const sessions = threads.reduce((sum, count) => sum + Math.max(1, Math.floor(count / threadsPerWorker)), 0);
  const largest = groups.reduce((top, group) => Math.max(top, sourceBytes(group)), 0);
  const batches = groups.map((group) =>
    Math.min(
      group.problem.experts,
      group.method.largestBatch(group.problem, engine, formOf(group, weighing)),
      settings.batchExperts ?? usualBatch(group, engine.kind, formOf(group, weighing)),
    ),
  );
  const plan = (workers: number, prefetch: number): MemoryPlan => {
    const held = Math.min(workers + prefetch, groups.length);
    const groupBytes = largest * held;
    const terms = memoryTerms({
      tensors,
      ...weighingTerms(groups, weighing, held),
      sliceBytes: sliceBytes(groups, settings, workers),
      connections: Array<number>(workers).fill(largest + largestMetric(groups, weighing)),
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
  /** The number of groups that are read ahead. */
  prefetch: number;
  /** The fewest experts of a batch. */
  leastBatch: number;
}

/** The plan of an arrangement with the largest batch that fits the budget, or with the smallest allowed batch if none fits. */
function arrange(
  groups: readonly GroupPlan[],
  settings: Settings,
  { workers, holdTargets, prefetch, leastBatch, holdParts = false }: Arrangement,
  tensors: number,
  engine: ChosenEngine,
  mostExperts: number,
  weighing?: PlannedMetric,
): MemoryPlan {
  const parts = holdParts ? Math.max(...groups.map((group) => group.groups)) : 1;
  const most = (measure: (group: GroupPlan) => number): number =>
    groups.reduce((top, group) => Math.max(top, measure(group)), 0);
  // No more groups are in memory than the run has.
  const held = Math.min(Math.max(workers + prefetch, parts), groups.length);
  const groupBytes = most(sourceBytes) * held;
  const { solver } = settings;
  const { writesParts } = engine;
  const slices = sliceBytes(groups, settings, workers);
  const termsOf = (batchExperts: number): MemoryTerms => {
    const all = groups.map((group) => {
      const metric = formOf(group, weighing);
      const fit = group.method.memory(group.problem, { solver, writesParts, holdTargets, batchExperts, metric });
      if (!holdsWeights(settings)) return withRounding(fit, group);
      if (!isRounded(group, settings)) return fit;
      return withFeedback(fit, group.problem, group.format.transposed, jobMetric(weighing?.metric, group)?.form);
    });
    const largest = (term: keyof FitMemory): number => all.reduce((top, fit) => Math.max(top, fit[term]), 0);
    const fit: FitMemory = { targets: largest('targets'), state: largest('state'), batch: largest('batch') };
    const fits = Array<FitMemory>(workers).fill(fit);
    const { threads: weighers, metricBytes } = weighingTerms(groups, weighing, held);
    return memoryTerms({
      tensors,
      engine: engine.name,
      threads: workers + weighers,
      metricBytes,
      groupBytes,
      sliceBytes: slices,
      fits,
      copies: true,
    });
  };
  const wanted = Math.min(
    most(({ problem }) => problem.experts),
    mostExperts,
    settings.batchExperts ??
      Math.min(...groups.map((group) => usualBatch(group, engine.kind, formOf(group, weighing)))),
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

/** A slice that is put together, the source's matrix that belongs in it, and two slices that are written. */
const SLICES_AT_ONCE = 4;

/**
 * The weights of groups that wait for others with slices in common, and the slices themselves. While the last group of a unit is
 * fitted, the others of it wait; so do those of its parts, and those whose partner another worker fits.
 */
function sliceBytes(groups: readonly GroupPlan[], settings: Pick<Settings, 'format'>, workers: number): number {
  const form = { format: settings.format, separate: !holdsWeights(settings) };
  let waiting = 0;
  let largest = 0;
  let parts = 1;
  for (const unit of groupUnits(groups, form)) {
    const sizes = unit.map(({ problem: { experts, rows, cols }, dtype }) => experts * rows * cols * floatBytes(dtype));
    waiting = Math.max(waiting, sizes.reduce((sum, size) => sum + size, 0) - Math.min(...sizes));
    for (const group of unit) {
      parts = Math.max(parts, group.groups);
      if (!form.separate && group.slices)
        largest = Math.max(largest, ...group.slices.map(({ size }) => size * floatBytes(group.dtype)));
    }
  }
  return waiting * (workers + parts - 1) + largest * SLICES_AT_ONCE;
}

/** The number of experts in a batch if there is enough memory. */
export const usualBatch = ({ method, problem }: MethodProblem, kind: Engine['kind'], metric?: MetricForm): number =>
  Math.max(1, Math.floor(BATCH_BYTES[kind] / method.batchBytes(problem, metric)));

/** The metric of the loop of a group's fit; undefined if it has none. */
function formOf(group: GroupPlan, weighing: PlannedMetric | undefined): MetricForm | undefined {
  const metric = jobMetric(weighing?.metric, group);
  return metric?.fit ? metric.form : undefined;
}

/** Whether written weights of a group may be quantised. */
const isRounded = ({ coded, experts }: GroupPlan, settings: Pick<Settings, 'format' | 'keepQuantized'>): boolean =>
  coded !== undefined ||
  (settings.keepQuantized &&
    holdsWeights(settings) &&
    experts.some(({ encoding }) => floatDtypeOf(encoding) === undefined));

const largestMetric = (groups: readonly GroupPlan[], weighing: PlannedMetric | undefined): number =>
  groups.reduce((top, group) => Math.max(top, metricBytes(weighing?.metric, group)), 0);

/** The thread and the bytes with which metrics are made and held, `held` of them at once. */
function weighingTerms(groups: readonly GroupPlan[], weighing: PlannedMetric | undefined, held: number) {
  if (!weighing) return { threads: 0, metricBytes: 0 };
  const stage = groups.reduce((top, group) => Math.max(top, weighingBytes(weighing, group, groups)), 0);
  return { threads: 1, metricBytes: held * largestMetric(groups, weighing) + stage };
}

/** Multiply-adds of one matrix product with all the experts of a group. */
function groupProduct({ method, problem }: MethodProblem): number {
  const { rows, cols, rank } = method.product(problem);
  return problem.experts * rows * cols * rank;
}
