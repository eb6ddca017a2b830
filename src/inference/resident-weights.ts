/**
 * Holds weights of routed experts in memory as they are stored, within a budget of bytes, so that they are read once. Those that
 * came first stay: each expert is needed again about as soon as the others, so evicting one for another would gain nothing.
 */
import type { Range } from '../checkpoint/encodings/decoder.js';
import { decodePart, matrixBytes, readMatrix, type StoredMatrix } from '../checkpoint/stored-matrix.js';
import type { RangeReader } from '../sources/files.js';

/** `own`: one expert needs the weights. `shared`: all experts of a layer do. */
export type Holder = 'own' | 'shared';

/** Weights of one checkpoint. */
export class ResidentWeights {
  /** Data and scales of matrices, by name. */
  private readonly held = new Map<string, Uint8Array>();
  private bytes: Record<Holder, number> = { own: 0, shared: 0 };

  /** @param limits bytes of held weights, by holder */
  constructor(
    private readonly files: RangeReader,
    private readonly limits: Readonly<Record<Holder, number>>,
  ) {}

  /** Reads a matrix if there is room for it. Returns the number of bytes read. Throws a `ReadError`. */
  async hold(matrix: StoredMatrix, holder: Holder): Promise<number> {
    const bytes = matrixBytes(matrix);
    if (this.held.has(matrix.name) || this.bytes[holder] + bytes > this.limits[holder]) return 0;
    this.held.set(matrix.name, await readMatrix(this.files, matrix));
    this.bytes[holder] += bytes;
    return bytes;
  }

  /** Decodes rows of a held matrix into `target` (rows.count, cols). Returns whether the matrix is held. */
  decode(target: Float32Array, matrix: StoredMatrix, rows: Range): boolean {
    const bytes = this.held.get(matrix.name);
    if (bytes) decodePart(matrix, bytes, rows, target);
    return bytes !== undefined;
  }

  /** Frees all held weights. */
  clear(): void {
    this.held.clear();
    this.bytes = { own: 0, shared: 0 };
  }
}
