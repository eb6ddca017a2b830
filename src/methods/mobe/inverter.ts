/** Inverts single positive definite matrices to a good residual, by as many Newton–Schulz steps as that takes. */
import type { Engine, EngineTensor } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { identity } from '../../engine/ops.js';
import { restart, sharpen } from './inverse.js';

const STEPS = 10;
/** A residual that is good enough: further rounds in f32 would only change rounding errors. */
const GOOD_RESIDUAL = 1e-2;
const MAX_ROUNDS = 6;

/** Inverts matrices of one size. */
export interface Inverter {
  /** X ≈ G⁻¹, for G (1, size, size). The caller disposes of both. */
  invert(G: EngineTensor): Promise<EngineTensor>;
  dispose(): Promise<void>;
}

export async function createInverter(engine: Engine, size: number): Promise<Inverter> {
  const shape = [1, size, size];
  const start = await engine.compile(trace({ G: shape }, ({ G }) => ({ ...restart(G, identity(size), STEPS) })));
  const continued = await engine.compile(trace({ G: shape, X: shape }, ({ G, X }) => ({ ...sharpen(G, X, STEPS) })));
  return {
    async invert(G) {
      let { X, residual } = (await start.run({ G })) as { X: EngineTensor; residual: EngineTensor };
      for (let round = 1; round < MAX_ROUNDS; round++) {
        const distance = Math.sqrt((await engine.read(residual))[0] as number);
        if (distance < GOOD_RESIDUAL) break;
        const next = await continued.run({ G, X });
        X.dispose();
        residual.dispose();
        ({ X, residual } = next as { X: EngineTensor; residual: EngineTensor });
      }
      residual.dispose();
      return X;
    },
    async dispose() {
      await start.dispose();
      await continued.dispose();
    },
  };
}
