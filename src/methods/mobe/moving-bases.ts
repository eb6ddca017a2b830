/**
 * The bases of a varpro fit, and the arrays that move them. Four arrays have the size of all bases: the bases, those before the last
 * step, the momentum, and the gradient while there is one. If an engine writes parts, nothing else is larger than some parts: bases
 * are written where those before the last step were, and the momentum of each part takes the place of the old one.
 */
import type { Engine, EngineTensor, Precision, Program } from '../../engine/engine.js';
import type { FitState } from '../method.js';
import { partOf } from './basis-parts.js';
import type { BatchRange } from './batches.js';
import type { Problem } from './problem.js';
import { GRAM_DECAY, traceUpdate } from './varpro-programs.js';

/** A gradient of all bases, by part: (count, r·d). */
export type BasisGradient = readonly EngineTensor[];

/** The parameters of one step. */
export interface BasisStep {
  /** The share of the old momentum in the new one. */
  readonly momentum: number;
  /** The size of the step, of an entry that has the root mean square of an orthogonal matrix. */
  readonly size: number;
  /** The number of this step, from 1. */
  readonly number: number;
}

/** The arrays with which a fit starts or resumes. */
interface BasisArrays {
  /** (m, r·d) */
  readonly bases: EngineTensor;
  /** Memory for further bases; undefined if there is none yet. */
  readonly spare: EngineTensor | undefined;
  /** The scale of each input axis, (1, 1, d). */
  readonly columns: EngineTensor;
  /** The momentum of each part, (count, r·d). */
  readonly momentum: EngineTensor[];
  /** The average of the momentum's Gram matrices of each part, (count, r, r). */
  readonly gram: EngineTensor[];
}

/** The names and lengths of the arrays in a saved state that belong to the bases, with those of their gradient. */
export function basisLengths(
  { bases: m, rank: r, cols: d }: Problem,
  parts: readonly BatchRange[],
): Readonly<Record<string, number>> {
  const lengths: Record<string, number> = { columns: d, bases: m * r * d };
  for (const [i, { count }] of parts.entries()) {
    lengths[partName('momentum', parts, i)] = count * r * d;
    lengths[partName('gram', parts, i)] = count * r * r;
    lengths[partName('gradient bases', parts, i)] = count * r * d;
  }
  return lengths;
}

/** The name of a part's array in a saved state. */
const partName = (name: string, parts: readonly BatchRange[], i: number): string =>
  parts.length === 1 ? name : `${name} ${parts[i]?.first}`;

export class MovingBases {
  /** The bases before the last step. */
  private previous: EngineTensor | undefined;
  private finished = false;

  private constructor(
    private readonly engine: Engine,
    private readonly parts: readonly BatchRange[],
    /** Programs by the number of bases that they move. */
    private readonly updates: ReadonlyMap<number, Program>,
    private readonly zeros: ReadonlyMap<number, EngineTensor>,
    private readonly columns: EngineTensor,
    private current: EngineTensor,
    private spare: EngineTensor | undefined,
    private readonly momentum: EngineTensor[],
    private readonly gram: EngineTensor[],
  ) {}

  /**
   * @param found the saved state, or else the starting bases
   * @param precision of the products that move bases
   */
  static async create(
    engine: Engine,
    problem: Problem,
    parts: readonly BatchRange[],
    found: FitState | Pick<BasisArrays, 'bases' | 'spare' | 'columns'>,
    precision?: Precision,
  ): Promise<MovingBases> {
    const { rank: r, cols: d } = problem;
    const updates = new Map<number, Program>();
    const zeros = new Map<number, EngineTensor>();
    for (const { count } of parts) {
      if (updates.has(count)) continue;
      updates.set(count, await engine.compile(traceUpdate({ ...problem, bases: count }), precision));
      zeros.set(count, engine.tensor(new Float32Array(count * r * d), [count, r * d], true));
    }
    const { bases, spare, columns, momentum, gram } = isStart(found)
      ? {
          ...found,
          momentum: parts.map(({ count }) => zeros.get(count) as EngineTensor),
          gram: parts.map(({ count }) => engine.tensor(new Float32Array(count * r * r), [count, r, r], true)),
        }
      : savedArrays(engine, problem, parts, found);
    return new MovingBases(engine, parts, updates, zeros, columns, bases, spare, momentum, gram);
  }

  /** B, (m, r·d). Valid until the next step. */
  get tensor(): EngineTensor {
    return this.current;
  }

  /** Whether a step was taken, so that `retake` and `revert` can undo it. */
  get canUndo(): boolean {
    return this.previous !== undefined;
  }

  /** A gradient of zeros. */
  get zero(): BasisGradient {
    return this.parts.map(({ count }) => this.zeros.get(count) as EngineTensor);
  }

  /** Frees a part of a gradient or of the momentum, unless it is a part of `zero`. */
  free(part: EngineTensor, i: number): void {
    if (part !== this.zero[i]) part.dispose();
  }

  /** Takes a step, and frees the gradient. */
  async move(gradient: BasisGradient, step: BasisStep): Promise<void> {
    const free = this.previous ?? this.spare;
    this.previous = undefined;
    this.spare = undefined;
    await this.step(this.current, free, gradient, step);
  }

  /** Takes the last step again with another size, and the momentum that it had. */
  async retake(step: Omit<BasisStep, 'momentum'>): Promise<void> {
    const from = this.previous as EngineTensor;
    await this.step(from, this.current, this.zero, { ...step, momentum: 1 });
  }

  /** Returns to the bases before the last step. */
  revert(): void {
    this.current.dispose();
    this.current = this.previous as EngineTensor;
    this.previous = undefined;
  }

  /**
   * Moves from `from`, which are the previous bases then.
   * @param free the tensor that the new bases take the place of
   */
  private async step(
    from: EngineTensor,
    free: EngineTensor | undefined,
    gradient: BasisGradient,
    { momentum, size, number }: BasisStep,
  ): Promise<void> {
    const scalar = (value: number): EngineTensor => this.engine.tensor(Float32Array.of(value), [1]);
    const scalars = {
      momentum: scalar(momentum),
      step: scalar(size),
      correction: scalar(1 - GRAM_DECAY ** number),
    };
    let next: EngineTensor | undefined;
    if (this.parts.length > 1) next = free ?? this.another();
    else free?.dispose();
    for (const [i, part] of this.parts.entries()) {
      const update = this.updates.get(part.count) as Program;
      const own = { M: this.momentum[i], Q: this.gram[i], dB: gradient[i] } as Record<string, EngineTensor>;
      const inputs = { B: partOf(from, part), ...own, columns: this.columns, ...scalars };
      const out = (await update.run(inputs, next && { B: partOf(next, part) })) as Record<
        'B' | 'M' | 'Q',
        EngineTensor
      >;
      this.free(this.momentum[i] as EngineTensor, i);
      this.gram[i]?.dispose();
      this.free(gradient[i] as EngineTensor, i);
      this.momentum[i] = out.M;
      this.gram[i] = out.Q;
      if (this.parts.length === 1) next = out.B;
    }
    for (const tensor of Object.values(scalars)) tensor.dispose();
    this.previous = from;
    this.current = next as EngineTensor;
  }

  private another(): EngineTensor {
    const { shape } = this.current;
    return this.engine.tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)), shape, true);
  }

  /** The arrays of a saved state, with those of a gradient. They are those of the tensors where the engine allows it. */
  async save(gradient: BasisGradient): Promise<Record<string, Float32Array>> {
    const state: Record<string, Float32Array> = {
      columns: await this.engine.read(this.columns),
      bases: await this.engine.read(this.current),
    };
    for (const i of this.parts.keys()) {
      const name = (array: string): string => partName(array, this.parts, i);
      state[name('momentum')] = await this.engine.read(this.momentum[i] as EngineTensor);
      state[name('gram')] = await this.engine.read(this.gram[i] as EngineTensor);
      state[name('gradient bases')] = await this.engine.read(gradient[i] as EngineTensor);
    }
    return state;
  }

  /** The gradient of a saved state. */
  savedGradient(saved: FitState): BasisGradient {
    return this.parts.map((_, i) => {
      const array = saved[partName('gradient bases', this.parts, i)] as Float32Array;
      return this.engine.tensor(array, this.momentum[i]?.shape as readonly number[], true);
    });
  }

  /** Frees everything but the bases. No step may follow. */
  async finish(): Promise<void> {
    for (const tensor of [this.previous, this.spare, this.columns, ...this.gram, ...this.zeros.values()])
      tensor?.dispose();
    for (const [i, part] of this.momentum.entries()) this.free(part, i);
    for (const update of this.updates.values()) await update.dispose();
    this.finished = true;
  }

  async dispose(): Promise<void> {
    if (!this.finished) await this.finish();
    this.current.dispose();
  }
}

const isStart = (
  found: FitState | Pick<BasisArrays, 'bases' | 'spare' | 'columns'>,
): found is Pick<BasisArrays, 'bases' | 'spare' | 'columns'> => 'spare' in found;

function savedArrays(
  engine: Engine,
  { bases: m, rank: r, cols: d }: Problem,
  parts: readonly BatchRange[],
  saved: FitState,
): BasisArrays {
  const tensor = (name: string, shape: readonly number[]): EngineTensor =>
    engine.tensor(saved[name] as Float32Array, shape, true);
  return {
    bases: tensor('bases', [m, r * d]),
    spare: undefined,
    columns: tensor('columns', [1, 1, d]),
    momentum: parts.map(({ count }, i) => tensor(partName('momentum', parts, i), [count, r * d])),
    gram: parts.map(({ count }, i) => tensor(partName('gram', parts, i), [count, r, r])),
  };
}
