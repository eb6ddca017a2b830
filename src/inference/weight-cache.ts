/**
 * Keeps decoded weights on the engine, each kind up to its share of the budget. Those beyond the share are made again each time:
 * to evict kept ones for them would not help, because those are needed again about as soon.
 */
import type { Engine, EngineTensor } from '../engine/engine.js';
import { elements } from '../engine/ops.js';

/** Tensors that are used together. */
export interface Unit<Name extends string = string> {
  /** Identifies the content. */
  readonly key: string;
  readonly shapes: Readonly<Record<Name, readonly number[]>>;
  readonly kind: Kind;
  /**
   * Writes the content into the buffers, row-major f32.
   * @param kept whether the unit is kept, so that its content is not asked for again
   */
  fill(buffers: Readonly<Record<Name, Float32Array>>, kept: boolean): Promise<void>;
}

/** `always`: every token needs it. `expert`: decoded weights of an expert. `mixed`: an expert's F, which costs most to make. */
export type Kind = 'always' | 'expert' | 'mixed';

/** Bytes that units of each kind may keep. */
export type KeptBytes = Readonly<Record<Kind, number>>;

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
  private readonly entries = new Map<string, Entry>();
  private held = 0;
  private kept: Record<Kind, number> = { always: 0, expert: 0, mixed: 0 };
  /** Memory of units that were not kept, for the next unit of the same sizes. A model's experts all have the same sizes. */
  private idle: Float32Array[] = [];
  private hits = 0;
  private misses = 0;

  /**
   * @param limit bytes of all units, in use or kept
   * @param keptLimits the part of `limit` that units of each kind may keep
   */
  constructor(
    private readonly engine: Engine,
    private readonly limit: number,
    private readonly keptLimits: KeptBytes,
  ) {}

  /** How often a unit was found (hits), and how often it had to be made (misses). */
  get counts(): { hits: number; misses: number } {
    return { hits: this.hits, misses: this.misses };
  }

  /** Whether a unit is in the cache. */
  has(key: string): boolean {
    return this.entries.has(key);
  }

  /** Calls `use` with the unit's tensors. They are valid until it is done. */
  async with<Name extends string, T>(
    unit: Unit<Name>,
    use: (tensors: Readonly<Record<Name, EngineTensor>>) => Promise<T>,
  ): Promise<T> {
    const known = this.entries.get(unit.key);
    if (known) this.hits++;
    const entry = known ?? (await this.load(unit));
    entry.users++;
    try {
      return await use(entry.tensors as Record<Name, EngineTensor>);
    } finally {
      entry.users--;
      if (entry.users === 0 && !entry.kept) this.release(unit.key, entry);
    }
  }

  private async load(unit: Unit): Promise<Entry> {
    this.misses++;
    const { key, kind, shapes } = unit;
    const bytes = unitBytes(unit);
    const kept = this.kept[kind] + bytes <= this.keptLimits[kind];
    const named = Object.entries(shapes).map(([name, shape]) => ({ name, shape, data: this.take(elements(shape)) }));
    const buffers = named.map(({ data }) => data);
    this.held += bytes;
    this.trim();
    try {
      await unit.fill(Object.fromEntries(named.map(({ name, data }) => [name, data])), kept);
    } catch (error) {
      this.held -= bytes;
      this.idle.push(...buffers);
      throw error;
    }
    if (kept) this.kept[kind] += bytes;
    const tensors = Object.fromEntries(
      named.map(({ name, shape, data }) => [name, this.engine.tensor(data, shape)] as const),
    );
    const entry = { tensors, buffers, bytes, kept, users: 0 };
    this.entries.set(key, entry);
    return entry;
  }

  private release(key: string, { tensors, buffers, bytes }: Entry): void {
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

  /** Releases all units and frees their memory. The cache can be used again. */
  clear(): void {
    for (const [key, entry] of [...this.entries]) this.release(key, entry);
    this.kept = { always: 0, expert: 0, mixed: 0 };
    this.idle = [];
  }
}
