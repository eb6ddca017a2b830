/** A process that probe.ts starts. It starts one engine and tells its parent which device it runs on, or why it does not work. */
import { EngineError, EngineUnavailableError } from '../errors.js';
import { createEngine } from './create-engine.js';
import type { Engine, EngineTensor } from './engine.js';
import { measureAnyRate, measureRateAt } from './gemm-rate.js';
import { trace } from './graph.js';
import { matmul } from './ops.js';
import type { BrokenEngine, ProbeRequest, WorkingEngine } from './probe.js';

async function probe({ name, threads, rate }: ProbeRequest): Promise<WorkingEngine | BrokenEngine> {
  try {
    const engine = await createEngine(name, { threads });
    await checkProduct(engine);
    const { device, kind, maxTensorBytes, writesParts, tf32 } = engine;
    const gemmRate = rate && (await (rate === 'any' ? measureAnyRate(engine) : measureRateAt(engine, rate)));
    return { name, device, kind, maxTensorBytes, writesParts, tf32, gemmRate };
  } catch (error) {
    return { name, reason: error instanceof EngineUnavailableError ? error.reason : (error as Error).message };
  }
}

async function checkProduct(engine: Engine): Promise<void> {
  const program = await engine.compile(trace({ x: [2, 2] }, ({ x }) => ({ y: matmul(x, x) })));
  const { y } = await program.run({ x: engine.tensor(Float32Array.of(1, 2, 3, 4), [2, 2]) });
  const product = String(await engine.read(y as EngineTensor));
  if (product !== '7,10,15,22') throw new EngineError(`[[1,2],[3,4]] squared came out as ${product}`);
}

process.send?.(await probe(JSON.parse(process.argv[2] as string) as ProbeRequest));
