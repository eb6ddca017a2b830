/**
 * A process of its own that tries the TensorFlow engine on one product: prints what it runs on as JSON, or fails with
 * the reason on stderr.
 */
import { EngineError } from '../errors.js';
import type { EngineTensor } from './engine.js';
import { trace } from './graph.js';
import { matmul } from './ops.js';
import { createTensorflowEngine } from './tensorflow-engine.js';

try {
  const engine = await createTensorflowEngine({ threads: 1 });
  const program = await engine.compile(trace({ x: [2, 2] }, ({ x }) => ({ y: matmul(x, x) })));
  const { y } = await program.run({ x: engine.tensor(Float32Array.of(1, 2, 3, 4), [2, 2]) });
  const product = String(await engine.read(y as EngineTensor));
  if (product !== '7,10,15,22') throw new EngineError(`[[1,2],[3,4]] squared came out as ${product}`);
  process.stdout.write(JSON.stringify({ kind: engine.kind, device: engine.device }));
} catch (error) {
  process.stderr.write(`${(error as Error).message}\n`);
  process.exitCode = 1;
}
