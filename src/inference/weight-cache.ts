/**
 * Caches weights on the engine within a budget of bytes. Weights that every token needs are kept up to their share of the
 * budget. Those beyond the share are read again each time: to evict kept ones for them would not help, because those are needed
 * again just as soon. Weights of routed experts are evicted by last use.
 */
import type { Engine, EngineTensor } from '../engine/engine.js';
import { elements } from '../engine/ops.js';

/** Tensors that are used together. */
export interface Unit<Name extends string = string> {
  /** Identifies the content. */
  readonly key: string;
  readonly shapes: Readonly<Record<Name, readonly number[]>>;
  /** `always`: every token needs it; `routed`: only tokens that the router sends to it. */
  readonly needed: 'always' | 'routed';
  /** Writes the content into the buffers, row-major f32. */
  fill(buffers: Readonly<Record<Name, Float32Array>>): Promise<void>;
}

/** Bytes of a unit in the cache. */
export const unitBytes = ({ shapes }: Pick<Unit, 'shapes'>): number =>
  Object.values(shapes).reduce((sum, shape) => sum + 4 * elements(shape), 0);

interface Entry {
  readonly tensors: Record<string, EngineTensor>;
  readonly buffers: readonly Float32Array[];
  readonly bytes: number;
  readonly kept: boolean;
  users: number;
}

/** The cache of one engine. */
export class WeightCache {
  /** Ordered by last use. */
  private readonly entries = new Map<string, Entry>();
  private held = 0;
  private kept = 0;
  /** Memory of evicted units, for the next unit of the same sizes. A model's experts all have the same sizes. */
  private idle: Float32Array[] = [];
  private hits = 0;
  private misses = 0;

  /**
   * @param limit bytes of all units
   * @param keptLimit the part of `limit` that units with `needed: 'always'` may keep
   */
  constructor(
    private readonly engine: Engine,
    readonly limit: number,
    private readonly keptLimit: number,
  ) {}

  /** How often a unit was found (hits), and how often it had to be read (misses). */
  get counts(): { hits: number; misses: number } {
    return { hits: this.hits, misses: this.misses };
  }

  /** Calls `use` with the unit's tensors. They are not evicted before it is done. */
  async with<Name extends string, T>(
    unit: Unit<Name>,
    use: (tensors: Readonly<Record<Name, EngineTensor>>) => Promise<T>,
  ): Promise<T> {
    const known = this.entries.get(unit.key);
    if (known) this.hits++;
    const entry = known ?? (await this.load(unit));
    this.entries.delete(unit.key); // and inserted again at the end: the map is ordered by last use
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

  /** Evicts the least recently used units until `bytes` fit or no more units can be evicted. */
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

  /** Frees idle memory that exceeds the budget together with the held units. */
  private trim(): void {
    let room = this.limit - this.held;
    this.idle = this.idle.filter(({ byteLength }) => {
      room -= byteLength;
      return room >= 0;
    });
  }

  /** Evicts all units and frees their memory. The cache can be used again. */
  clear(): void {
    for (const [key, entry] of [...this.entries]) this.evict(key, entry);
    this.kept = 0;
    this.idle = [];
  }
}
