/**
 * One pass over all experts of a varpro fit: the loss, and the gradients of B and α, summed batch by batch. It holds the inverses of
 * leaves from pass to pass.
 *
 * A batch's program either adds its share to the gradient of all bases itself, or gives its D, whose rows are collected for several
 * batches. A second program then adds them to the gradient of one part of the bases after the other. That is done if bases have
 * several parts, and if an expert is so large that a batch has only one.
 */
import type { Engine, EngineTensor, Precision, Program } from '../../engine/engine.js';
import type { FitState, Targets } from '../method.js';
import { columnsOf, partOf } from './basis-parts.js';
import { type BatchRange, solverBatches } from './batches.js';
import { identityLeaves, leafElements, leafShape } from './block-solve.js';
import { turnsOf } from './costs.js';
import type { BasisGradient, MovingBases } from './moving-bases.js';
import type { Problem, SolverOptions } from './problem.js';
import { traceGather, traceGradient, traceRestart } from './varpro-programs.js';
import { WeightedTargets } from './weighted-targets.js';

/** If ‖I − GX‖ of a leaf is above this after tracking, the inverses are computed again. */
const TRACKING_LIMIT = 0.5;
/** The most rounds of a new inverse from one start. */
const FRESH_ROUNDS = 3;

export interface Gradient {
  readonly loss: number;
  readonly bases: BasisGradient;
  readonly coefficients: Float32Array;
}

interface Programs {
  readonly gradient: Program;
  /** Starts the inverses; undefined if there are none. */
  readonly restart?: Program;
}

interface Batch extends BatchRange, Programs {
  /** The inverses of the leaves of each G, of `leafShape`, from pass to pass. Undefined if leaves are eliminated. */
  inverse: EngineTensor | undefined;
}

/** Batches whose D are added to the gradient together. */
interface Collection extends BatchRange {
  readonly batches: readonly Batch[];
  /** Programs that add D to the gradient of a part, by its number of bases. Undefined if a batch's program adds it. */
  readonly gathers?: ReadonlyMap<number, Program>;
}

/** How a group's experts are divided. */
interface Division {
  readonly collections: readonly BatchRange[];
  /** The batches of each collection. */
  readonly batches: ReadonlyArray<readonly BatchRange[]>;
  readonly inTurn: boolean;
}

function divide(
  engine: Engine,
  problem: Problem,
  { metric }: Targets,
  { batchExperts, limits }: SolverOptions,
): Division {
  const turns = engine.writesParts ? turnsOf(problem, batchExperts, metric, limits?.expert) : 1;
  const collections = solverBatches(engine, problem, Math.max(turns, batchExperts), metric);
  const single = ({ first, count }: BatchRange): BatchRange[] =>
    Array.from({ length: count }, (_, i) => ({ first: first + i, count: 1 }));
  return { collections, batches: collections.map((it) => (turns > 1 ? single(it) : [it])), inTurn: turns > 1 };
}

/** The names and lengths of the arrays of a pass in a saved state. */
export function passLengths(
  engine: Engine,
  problem: Problem,
  targets: Targets,
  options: SolverOptions,
): Readonly<Record<string, number>> {
  if (eliminatesLeaves(engine, targets)) return {};
  const { batches } = divide(engine, problem, targets, options);
  const leaves = leafElements(problem.rank);
  return Object.fromEntries(batches.flat().map(({ first, count }) => [inverseName(first), count * leaves]));
}

const inverseName = (first: number): string => `inverse ${first}`;

/** Whether leaves are eliminated. Else their inverses are tracked. */
const eliminatesLeaves = ({ kind }: Engine, { metric }: Targets): boolean =>
  metric?.columns !== undefined && kind === 'cpu';

export class GradientPass {
  private disposed = false;

  private constructor(
    private readonly engine: Engine,
    private readonly problem: Problem,
    private readonly targets: WeightedTargets,
    private readonly collections: readonly Collection[],
    private readonly parts: readonly BatchRange[],
    /** Memory for the D of experts that are computed one after another. */
    private readonly rows: EngineTensor | undefined,
  ) {}

  /** Compiles the programs. `start` must follow. */
  static async create(
    engine: Engine,
    problem: Problem,
    targets: Targets,
    options: SolverOptions,
    parts: readonly BatchRange[],
  ): Promise<GradientPass> {
    const { rank: r, cols: d } = problem;
    const { metric } = targets;
    const { collections, batches, inTurn } = divide(engine, problem, targets, options);
    const gathers = inTurn || parts.length > 1;
    const eliminates = eliminatesLeaves(engine, targets);
    const { ridge, precision: wanted } = options;
    // G = F C Fᵀ is so badly conditioned that no A is found in TF32 that could be refined.
    const precision = metric?.columns ? 'f32' : wanted;
    const form = { eliminates, ridge, gathers, refines: wanted === 'tf32' };
    const programs = new Map<number, Programs>();
    for (const { count } of batches.flat()) {
      if (programs.has(count)) continue;
      programs.set(count, {
        gradient: await engine.compile(traceGradient(problem, count, metric, form), precision),
        ...(!eliminates && {
          restart: await engine.compile(traceRestart(problem, count, metric, ridge), precision),
        }),
      });
    }
    const gathering = new Map<number, ReadonlyMap<number, Program>>();
    if (gathers)
      for (const { count } of collections)
        if (!gathering.has(count)) gathering.set(count, await gatherPrograms(engine, problem, count, parts, wanted));
    const most = Math.max(...collections.map(({ count }) => count));
    return new GradientPass(
      engine,
      problem,
      new WeightedTargets(engine, problem, targets, options.holdTargets),
      collections.map((range, i) => ({
        ...range,
        batches: (batches[i] as BatchRange[]).map(({ first, count }) => {
          const inverse = eliminates ? undefined : engine.tensor(identityLeaves(count, r), leafShape(count, r));
          return { first, count, inverse, ...(programs.get(count) as Programs) };
        }),
        ...(gathers && { gathers: gathering.get(range.count) as ReadonlyMap<number, Program> }),
      })),
      parts,
      inTurn ? engine.tensor(new Float32Array(most * r * d), [most, r * d], true) : undefined,
    );
  }

  private get batches(): readonly Batch[] {
    return this.collections.flatMap(({ batches }) => batches);
  }

  /** Whether the metric has a C. */
  get hasColumns(): boolean {
    return this.targets.hasColumns;
  }

  /** Takes the inverses of a saved state. */
  restore(saved: FitState): void {
    for (const batch of this.batches) {
      if (!batch.inverse) continue;
      const { shape } = batch.inverse;
      batch.inverse.dispose();
      batch.inverse = this.engine.tensor(saved[inverseName(batch.first)] as Float32Array, shape, true);
    }
  }

  /** The inverses, for a saved state. */
  async save(): Promise<Record<string, Float32Array>> {
    const state: Record<string, Float32Array> = {};
    for (const { first, inverse } of this.batches)
      if (inverse) state[inverseName(first)] = await this.engine.read(inverse);
    return state;
  }

  /** Computes all inverses again: from the last ones, or from identities if those do not converge. */
  async invert(bases: MovingBases, coefficients: Float32Array): Promise<void> {
    for (const batch of this.batches) await this.invertBatch(batch, bases, coefficients);
  }

  /** The loss and the gradients at these bases and α. */
  async run(bases: MovingBases, coefficients: Float32Array): Promise<Gradient> {
    const { experts: n, rows, cols, bases: m } = this.problem;
    const slope = new Float32Array(n * m);
    let squared = 0;
    const sums = [...bases.zero];
    for (const collection of this.collections) {
      let D: EngineTensor | undefined;
      for (const batch of collection.batches) {
        const row = this.rows && partOf(this.rows, { first: batch.first - collection.first, count: 1 });
        const out = await this.runBatch(batch, bases, coefficients, sums[0] as EngineTensor, row);
        squared += (await this.take(out.squared as EngineTensor))[0] as number;
        D = out.D;
        if (!out.dB) continue;
        slope.set(await this.take(out.dAlpha as EngineTensor), batch.first * m);
        bases.free(sums[0] as EngineTensor, 0);
        sums[0] = out.dB;
      }
      if (!collection.gathers) continue;
      const all = this.rows ? partOf(this.rows, { first: 0, count: collection.count }) : (D as EngineTensor);
      await this.gather(collection, all, bases, coefficients, { sums, slope });
      if (!this.rows) D?.dispose();
    }
    return { loss: squared / (n * rows * cols), bases: sums, coefficients: slope };
  }

  /** Adds D to the sums of all parts, and sets the slope of α of its experts. */
  private async gather(
    collection: Collection,
    D: EngineTensor,
    bases: MovingBases,
    coefficients: Float32Array,
    { sums, slope }: { sums: EngineTensor[]; slope: Float32Array },
  ): Promise<void> {
    const { bases: m } = this.problem;
    for (const [i, part] of this.parts.entries()) {
      const before = sums[i] as EngineTensor;
      const own = columnsOf(coefficients, m, collection, part);
      const alpha = this.engine.tensor(own, [collection.count, part.count]);
      const program = collection.gathers?.get(part.count) as Program;
      const out = await program.run({ B: partOf(bases.tensor, part), dB0: before, alpha, D });
      alpha.dispose();
      bases.free(before, i);
      sums[i] = out.dB as EngineTensor;
      const dAlpha = await this.take(out.dAlpha as EngineTensor);
      for (let row = 0; row < collection.count; row++) {
        const values = dAlpha.subarray(row * part.count, (row + 1) * part.count);
        slope.set(values, (collection.first + row) * m + part.first);
      }
    }
  }

  /**
   * @param sum the gradient of all bases so far, if the program adds to it
   * @param row memory for D, if there is some
   */
  private async runBatch(
    batch: Batch,
    bases: MovingBases,
    coefficients: Float32Array,
    sum: EngineTensor,
    row: EngineTensor | undefined,
  ): Promise<Record<string, EngineTensor>> {
    const weighted = await this.targets.get(batch);
    for (let attempt = 0; ; attempt++) {
      const alpha = this.alphaOf(batch, coefficients);
      const { inverse } = batch;
      const known = { B: bases.tensor, alpha, dB0: sum, ...(inverse && { X: inverse }) };
      const out = await batch.gradient.run({ ...known, ...weighted }, row && { D: row });
      alpha.dispose();
      if (!inverse) return out;
      const residual = Math.sqrt((await this.take(out.residual as EngineTensor))[0] as number);
      if (residual < TRACKING_LIMIT || attempt > 0) {
        inverse.dispose();
        batch.inverse = out.X as EngineTensor;
        return out;
      }
      for (const tensor of [out.X, out.dB, row ? undefined : out.D, out.dAlpha, out.squared]) tensor?.dispose();
      await this.invertBatch(batch, bases, coefficients);
    }
  }

  private async invertBatch(batch: Batch, bases: MovingBases, coefficients: Float32Array): Promise<void> {
    const { restart } = batch;
    if (!restart || !batch.inverse) return;
    const { count } = batch;
    const { rank } = this.problem;
    const inputs = { B: bases.tensor, alpha: this.alphaOf(batch, coefficients), ...this.targets.getColumns(batch) };
    let residual = Number.POSITIVE_INFINITY;
    for (let round = 0; round < 2 * FRESH_ROUNDS && !(residual < TRACKING_LIMIT); round++) {
      if (round === FRESH_ROUNDS) {
        batch.inverse.dispose();
        batch.inverse = this.engine.tensor(identityLeaves(count, rank), leafShape(count, rank));
      }
      const out = await restart.run({ ...inputs, X: batch.inverse });
      batch.inverse.dispose();
      batch.inverse = out.X as EngineTensor;
      residual = Math.sqrt((await this.take(out.residual as EngineTensor))[0] as number);
    }
    inputs.alpha.dispose();
  }

  private alphaOf({ first, count }: Batch, coefficients: Float32Array): EngineTensor {
    const m = this.problem.bases;
    return this.engine.tensor(coefficients.slice(first * m, (first + count) * m), [count, m]);
  }

  /** Reads a small result and frees it. */
  private async take(tensor: EngineTensor): Promise<Float32Array> {
    const values = (await this.engine.read(tensor)).slice();
    tensor.dispose();
    return values;
  }

  /** May be called again. */
  async dispose(): Promise<void> {
    if (this.disposed) return;
    this.disposed = true;
    await this.targets.dispose();
    this.rows?.dispose();
    const programs = new Set<Program>();
    for (const { batches, gathers } of this.collections) {
      for (const { inverse, gradient, restart } of batches) {
        inverse?.dispose();
        programs.add(gradient);
        if (restart) programs.add(restart);
      }
      for (const program of gathers?.values() ?? []) programs.add(program);
    }
    for (const program of programs) await program.dispose();
  }
}

async function gatherPrograms(
  engine: Engine,
  problem: Problem,
  count: number,
  parts: readonly BatchRange[],
  precision: Precision | undefined,
): Promise<ReadonlyMap<number, Program>> {
  const programs = new Map<number, Program>();
  for (const part of parts)
    if (!programs.has(part.count))
      programs.set(part.count, await engine.compile(traceGather(problem, count, part.count), precision));
  return programs;
}
