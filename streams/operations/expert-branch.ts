/** The branch of the dataflow that factorises: source → group → normalise → factorise → fold σ. */
import { Readable } from 'node:stream';
import { type GroupPlan, groupLabel, sourceBytes } from '../../src/conversion/group-plan.js';
import type { MemoryPlan } from '../../src/conversion/memory-plan.js';
import type { RunSettings } from '../../src/conversion/settings.js';
import { InterruptedError } from '../../src/errors.js';
import { addMoments, type Moments, NO_MOMENTS } from '../../src/linalg/moments.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { Written } from '../compute/compute.js';
import { type Fitter, FitterPool, localFitter } from '../compute/fitter.js';
import { connectFitters, type RemoteWorkers } from '../compute/remote-fitter.js';
import { ByteBudget } from '../flow/byte-budget.js';
import { inLanes } from '../flow/highland.js';
import type { StageClocks } from '../flow/stage-clock.js';
import type { Factorization, TensorRecord } from '../records.js';
import type { RunHooks } from '../run-options.js';
import { type FactoriseOptions, factorise } from '../stages/factorise.js';
import { groupExperts } from '../stages/group-experts.js';
import { measureGroup, normalise, type Sigmas, sigmaOf } from '../stages/normalise.js';
import { readExperts } from '../stages/read-experts.js';

/**
 * Reads every group once, so that bad weights are found before hours of work, and learns each σ on the way: that of all the
 * experts of its layer and projection, as the reference takes it also where they are cut into groups (`train_group.py`).
 * Where weights are to be rebuilt, those that their dtype cannot hold are an error too. What factors will be is not known yet.
 * @param wanted the groups whose σ is needed; of `all`, those of the same layers and projections are read too
 */
export async function measureGroups(
  wanted: readonly GroupPlan[],
  all: readonly GroupPlan[],
  reader: RangeReader,
  { groupBytes, written }: Pick<MemoryPlan, 'groupBytes'> & { readonly written?: Written },
  { onProgress, signal, clocks }: RunHooks,
): Promise<Sigmas> {
  const part = ({ layer, projection }: GroupPlan): string => `${layer} ${projection}`;
  const parts = new Set(wanted.map(part));
  const groups = all.filter((group) => parts.has(part(group)));
  const budget = new ByteBudget(groupBytes, clocks?.held);
  const moments = new Map<GroupPlan, Moments>();
  onProgress?.({
    kind: 'phase',
    phase: 'check',
    groups: groups.length,
    bytes: groups.reduce((sum, group) => sum + sourceBytes(group), 0),
  });
  for await (const experts of groupExperts(timedExperts(groups, reader, budget, clocks))) {
    if (signal?.aborted) throw new InterruptedError();
    const { group } = experts;
    const measure = (): Promise<Moments> => measureGroup(experts, written);
    const own = await (clocks ? clocks.work('normalise', sourceBytes(group), measure) : measure());
    sigmaOf(own, groupLabel(group));
    moments.set(group, own);
    budget.release(sourceBytes(group));
    onProgress?.({ kind: 'checked', groups: moments.size });
  }
  return new Map(groups.map((group) => [group, sigmaOf(together(group, moments), groupLabel(group))] as const));
}

/** Reading is what takes the time; waiting for the budget is being blocked, not working. */
function timedExperts(
  groups: readonly GroupPlan[],
  reader: RangeReader,
  budget: ByteBudget,
  clocks: StageClocks | undefined,
): AsyncIterable<TensorRecord> {
  if (!clocks) return readExperts(groups, reader, budget);
  const timed: RangeReader = {
    read: (file, position, target) =>
      clocks.work('read experts', target.byteLength, () => reader.read(file, position, target)),
    readRange: (range) => clocks.work('read experts', range.end - range.start, () => reader.readRange(range)),
  };
  return readExperts(groups, timed, budget);
}

/** The moments of all the groups of a layer and projection that are at hand. */
function together({ layer, projection }: GroupPlan, moments: ReadonlyMap<GroupPlan, Moments>): Moments {
  return [...moments]
    .filter(([other]) => other.layer === layer && other.projection === projection)
    .reduce((sum, [, own]) => addMoments(sum, own), NO_MOMENTS);
}

export interface FitOptions {
  readonly groups: readonly GroupPlan[];
  readonly reader: RangeReader;
  readonly memory: MemoryPlan;
  readonly settings: RunSettings;
  readonly sigmas: Sigmas;
  readonly written: Written;
  readonly stateOf?: FactoriseOptions['stateOf'];
  /** The machines that fit, where it is not this one. */
  readonly remote: RemoteWorkers | undefined;
  readonly hooks: RunHooks;
  /** Aborting it stops the workers. */
  readonly signal: AbortSignal;
}

/**
 * Fits the groups, as many side by side as there are workers, and reads the next meanwhile. Ending it, early or not, stops the
 * workers.
 * @param lane what becomes of each fitted group; it must take all its experts or release it
 */
export async function* fitGroups<T>(
  options: FitOptions,
  lane: (factorization: Factorization) => AsyncIterable<T>,
): AsyncGenerator<T> {
  const { groups, reader, memory, settings, sigmas, written, stateOf, remote, hooks, signal } = options;
  const budget = new ByteBudget(memory.groupBytes, hooks.clocks?.held);
  const { workers, threadsPerWorker: threads } = memory;
  const local = (): Fitter => localFitter({ engine: settings.engine, threads }, signal);
  const pool = remote
    ? new FitterPool(await connectFitters(remote, workers, threads, hooks.peers ?? {}, signal), local)
    : new FitterPool(Array.from({ length: workers }, local));
  const source = Readable.from(timedExperts(groups, reader, budget, hooks.clocks), {
    objectMode: true,
    highWaterMark: 1,
  });
  const onStep: FactoriseOptions['onStep'] = (progress) => hooks.onProgress?.({ kind: 'step', ...progress });
  const onFold: FactoriseOptions['onFold'] = (progress) => hooks.onProgress?.({ kind: 'fold', ...progress });
  const onLost: FactoriseOptions['onLost'] = (worker, reason) => hooks.onProgress?.({ kind: 'lost', worker, reason });
  try {
    const normalised = normalise(groupExperts(source), sigmas);
    const stage: FactoriseOptions = {
      pool,
      budget,
      settings,
      memory,
      written,
      stateOf,
      onStep,
      onFold,
      onLost,
      clocks: hooks.clocks,
    };
    yield* inLanes(normalised, pool.size, async function* (group) {
      yield* lane(await factorise(group, stage));
    });
  } finally {
    source.destroy();
    await pool.close();
  }
}
