/**
 * Weights on the engine, within a budget of bytes. What every token needs stays once it was read, as far as its share of
 * the budget goes, and is read anew each time beyond that: evicting it would only make room for what is needed sooner
 * again. What the router picks goes by last use.
 */
import type { Engine, EngineTensor } from '../engine/engine.js';
import { elements } from '../engine/ops.js';

/** Tensors that are used together. */
export interface Unit<Name extends string = string> {
  /** The same for the same content. */
  readonly key: string;
  readonly shapes: Readonly<Record<Name, readonly number[]>>;
  /** `always`: by every token; `routed`: by those that the router sends there. */
  readonly needed: 'always' | 'routed';
  /** Writes the content, row-major f32. */
  fill(buffers: Readonly<Record<Name, Float32Array>>): Promise<void>;
}

/** Bytes of a unit while it is held. */
export const unitBytes = ({ shapes }: Pick<Unit, 'shapes'>): number =>
  Object.values(shapes).reduce((sum, shape) => sum + 4 * elements(shape), 0);

interface Entry {
  readonly tensors: Record<string, EngineTensor>;
  readonly buffers: readonly Float32Array[];
  readonly bytes: number;
  readonly kept: boolean;
  users: number;
}

export class WeightCache {
  /** In order of last use. */
  private readonly entries = new Map<string, Entry>();
  private held = 0;
  private kept = 0;
  /** Memory of evicted units, for the next of the same sizes: a model's experts are all alike. */
  private idle: Float32Array[] = [];
  private hits = 0;
  private misses = 0;

  /**
   * @param limit bytes in all
   * @param keptLimit bytes of it that units needed always may take for good
   */
  constructor(
    private readonly engine: Engine,
    readonly limit: number,
    private readonly keptLimit: number,
  ) {}

  /** How often a unit was there, and how often it had to be read. */
  get counts(): { hits: number; misses: number } {
    return { hits: this.hits, misses: this.misses };
  }

  /** Calls `use` with the unit's tensors, which stay at least until it is done. */
  async with<Name extends string, T>(
    unit: Unit<Name>,
    use: (tensors: Readonly<Record<Name, EngineTensor>>) => Promise<T>,
  ): Promise<T> {
    const known = this.entries.get(unit.key);
    if (known) this.hits++;
    const entry = known ?? (await this.load(unit));
    this.entries.delete(unit.key); // re-inserted: the map is in order of last use
    this.entries.set(unit.key, entry);
    entry.users++;
    try {
      return await use(entry.tensors as Record<Name, EngineTensor>);
    } finally {
      entry.users--;
      if (entry.users === 0 && unit.needed === 'always' && !entry.kept) this.evict(unit.key, entry);
    }
  }

  private async load(unit: Unit): Promise<Entry> {
    this.misses++;
    const bytes = unitBytes(unit);
    const kept = unit.needed === 'always' && this.kept + bytes <= this.keptLimit;
    this.makeRoom(bytes);
    this.held += bytes;
    if (kept) this.kept += bytes;
    const buffers = Object.fromEntries(
      Object.entries(unit.shapes).map(([name, shape]) => [name, this.take(elements(shape))]),
    );
    this.trim();
    try {
      await unit.fill(buffers);
    } catch (error) {
      this.held -= bytes;
      if (kept) this.kept -= bytes;
      throw error;
    }
    const tensors = Object.fromEntries(
      Object.entries(buffers).map(([name, data]) => [
        name,
        this.engine.tensor(data, unit.shapes[name] as readonly number[]),
      ]),
    );
    return { tensors, buffers: Object.values(buffers), bytes, kept, users: 0 };
  }

  /** Evicts what was used longest ago, until the bytes fit or nothing is left that may go. */
  private makeRoom(bytes: number): void {
    for (const [key, entry] of this.entries) {
      if (this.held + bytes <= this.limit) return;
      if (entry.users === 0 && !entry.kept) this.evict(key, entry);
    }
  }

  private evict(key: string, { tensors, buffers, bytes }: Entry): void {
    this.entries.delete(key);
    this.held -= bytes;
    for (const tensor of Object.values(tensors)) tensor.dispose();
    this.idle.push(...buffers);
  }

  private take(length: number): Float32Array {
    const at = this.idle.findIndex((buffer) => buffer.length === length);
    return at < 0 ? new Float32Array(length) : (this.idle.splice(at, 1)[0] as Float32Array);
  }

  /** Lets go of idle memory that no longer fits the budget beside what is held. */
  private trim(): void {
    let room = this.limit - this.held;
    this.idle = this.idle.filter(({ byteLength }) => {
      room -= byteLength;
      return room >= 0;
    });
  }

  dispose(): void {
    for (const [key, entry] of [...this.entries]) this.evict(key, entry);
    this.idle = [];
  }
}
