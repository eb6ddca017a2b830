import type { Engine } from './engine.js';
import { trace } from './graph.js';
import { matmul } from './ops.js';

const LEAST_SECONDS = 0.2;
/** Elements of the largest operand; beyond this the rate no longer depends on size. */
const MAX_ELEMENTS = 2 ** 22;

/**
 * Measured rate of (p × d)·(d × r) products, batched, in floating-point operations a second.
 * A product that size keeps the engine as busy as a solver step of the same shapes would.
 */
export async function measureGemmRate(engine: Engine, p: number, d: number, r: number): Promise<number> {
  const batch = Math.max(1, Math.min(32, Math.floor(MAX_ELEMENTS / (Math.max(p, r) * d))));
  const program = await engine.compile(
    trace({ W: [batch, p, d], F: [batch, r, d] }, ({ W, F }) => ({ product: matmul(W, F, { transposeB: true }) })),
  );
  const W = engine.tensor(new Float32Array(batch * p * d).fill(0.5), [batch, p, d]);
  const F = engine.tensor(new Float32Array(batch * r * d).fill(0.5), [batch, r, d]);
  const run = async (): Promise<void> => (await program.run({ W, F })).product?.dispose();
  await run(); // the first allocates
  const started = performance.now();
  let runs = 0;
  let seconds = 0;
  while (seconds < LEAST_SECONDS) {
    await run();
    runs++;
    seconds = (performance.now() - started) / 1000;
  }
  for (const tensor of [W, F]) tensor.dispose();
  await program.dispose();
  return (runs * 2 * batch * p * d * r) / seconds;
}
