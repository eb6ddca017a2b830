import type { Engine, EngineTensor } from './engine.js';
import { trace } from './graph.js';
import { matmul } from './ops.js';

/** The measured round takes at least this long. Shorter rounds before it find out how many products that needs. */
const LEAST_SECONDS = 0.1;
/** Elements of the largest operand; beyond this the rate no longer depends on size. */
const MAX_ELEMENTS = 2 ** 22;

/** A product of (rows × cols) by (cols × rank). */
export interface ProductShape {
  readonly rows: number;
  readonly cols: number;
  readonly rank: number;
}

/** Sizes of square products. Fast devices reach their full rate only on large ones. */
const SIZES = [128, 512, 2048];
/** A larger product is not tried if one batch of it would take longer than this. */
const PATIENCE_SECONDS = 1;

/** The best rate of square products, in floating-point operations a second. Sizes that would take too long are left out. */
export async function measureAnyRate(engine: Engine): Promise<number> {
  let best = 0;
  for (const size of SIZES) {
    if (best && productOperations(size, size, size) / best > PATIENCE_SECONDS) break;
    best = Math.max(best, await measureGemmRate(engine, size, size, size));
  }
  return best;
}

/** The rate of products of this shape, in floating-point operations a second; of smaller ones if these would take too long. */
export async function measureRateAt(engine: Engine, { rows, cols, rank }: ProductShape): Promise<number> {
  const small = await measureGemmRate(engine, Math.min(rows, 128), Math.min(cols, 128), Math.min(rank, 128));
  const patient = productOperations(rows, cols, rank) / small <= 4 * PATIENCE_SECONDS;
  return patient ? measureGemmRate(engine, rows, cols, rank) : small;
}

const batchSize = (p: number, d: number, r: number): number =>
  Math.max(1, Math.min(32, Math.floor(MAX_ELEMENTS / (Math.max(p, r) * d))));

const productOperations = (p: number, d: number, r: number): number => 2 * batchSize(p, d, r) * p * d * r;

/**
 * Measured rate of (p × d)·(d × r) products, batched, in floating-point operations a second; in TF32 if the engine has it.
 * These products keep the engine as busy as a solver step of the same shapes.
 */
export async function measureGemmRate(engine: Engine, p: number, d: number, r: number): Promise<number> {
  const batch = batchSize(p, d, r);
  const program = await engine.compile(
    trace({ W: [batch, p, d], F: [batch, r, d] }, ({ W, F }) => ({ product: matmul(W, F, { transposeB: true }) })),
    engine.tf32 ? 'tf32' : 'f32',
  );
  const W = engine.tensor(new Float32Array(batch * p * d).fill(0.5), [batch, p, d]);
  const F = engine.tensor(new Float32Array(batch * r * d).fill(0.5), [batch, r, d]);
  const seconds = async (runs: number): Promise<number> => {
    const started = performance.now();
    for (let i = 1; ; i++) {
      const { product } = (await program.run({ W, F })) as { product: EngineTensor };
      if (i === runs) await engine.read(product); // a device may still be at work when `run` returns
      product.dispose();
      if (i === runs) return (performance.now() - started) / 1000;
    }
  };
  await seconds(1); // the first allocates
  let runs = 1;
  let taken = await seconds(runs);
  for (; taken < LEAST_SECONDS; taken = await seconds(runs)) runs *= taken < LEAST_SECONDS / 8 ? 8 : 2;
  for (const tensor of [W, F]) tensor.dispose();
  await program.dispose();
  return (runs * productOperations(p, d, r)) / taken;
}
