/** Inverts single positive definite matrices to a good residual, by as many Newton–Schulz steps as that takes. */
import type { Engine, EngineTensor } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { identity } from '../../engine/ops.js';
import { restart, sharpen } from './inverse.js';

/** Newton–Schulz steps of one program. */
export const STEPS = 10;
/** A residual that is good enough: further rounds in f32 would only change rounding errors. */
const GOOD_RESIDUAL = 1e-2;
const MAX_ROUNDS = 6;

/** An approximate inverse (`Inverse`) as tensors. */
export interface InverseTensors {
  readonly X: EngineTensor;
  readonly residual: EngineTensor;
}

/** Finishes approximate inverses of matrices of one size. */
export interface Sharpener {
  /** Takes more steps from a first result until its residual is good. Disposes of the first result. */
  finish(G: EngineTensor, first: InverseTensors): Promise<EngineTensor>;
  dispose(): Promise<void>;
}

export async function createSharpener(engine: Engine, size: number): Promise<Sharpener> {
  const shape = [1, size, size];
  const program = await engine.compile(trace({ G: shape, X: shape }, ({ G, X }) => ({ ...sharpen(G, X, STEPS) })));
  return {
    async finish(G, first) {
      let { X, residual } = first;
      for (let round = 1; round < MAX_ROUNDS; round++) {
        const distance = Math.sqrt((await engine.read(residual))[0] as number);
        if (distance < GOOD_RESIDUAL) break;
        const next = await program.run({ G, X });
        X.dispose();
        residual.dispose();
        ({ X, residual } = next as unknown as InverseTensors);
      }
      residual.dispose();
      return X;
    },
    dispose: () => program.dispose(),
  };
}

/** Inverts matrices of one size. */
export interface Inverter {
  /** X ≈ G⁻¹, for G (1, size, size). The caller disposes of both. */
  invert(G: EngineTensor): Promise<EngineTensor>;
  dispose(): Promise<void>;
}

export async function createInverter(engine: Engine, size: number): Promise<Inverter> {
  const start = await engine.compile(
    trace({ G: [1, size, size] }, ({ G }) => ({ ...restart(G, identity(size), STEPS) })),
  );
  const sharpener = await createSharpener(engine, size);
  return {
    invert: async (G) => sharpener.finish(G, (await start.run({ G })) as unknown as InverseTensors),
    async dispose() {
      await start.dispose();
      await sharpener.dispose();
    },
  };
}
