import type { Engine, EngineTensor } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { matmul } from '../../engine/ops.js';
import type { Reconstruction } from '../method.js';
import type { Problem } from './problem.js';

/** Ŵ = A·V, an expert at a time. */
export async function createReconstruction(
  engine: Engine,
  { rows: p, cols: d, rank: r }: Problem,
): Promise<Reconstruction> {
  const program = await engine.compile(trace({ A: [p, r], V: [r, d] }, ({ A, V }) => ({ W: matmul(A, V) })));
  return {
    async expert(_, { A, V }) {
      const inputs = { A: engine.tensor(A as Float32Array, [p, r]), V: engine.tensor(V as Float32Array, [r, d]) };
      const { W } = await program.run(inputs);
      const weights = (await engine.read(W as EngineTensor)).slice();
      for (const tensor of [W as EngineTensor, inputs.A, inputs.V]) tensor.dispose();
      return weights;
    },
    dispose: () => program.dispose(),
  };
}
