/** Runs alone, for probe.ts: starts one engine and tells its parent what it runs on, or why it does not. */
import { EngineUnavailableError } from '../errors.js';
import { createEngine } from './create-engine.js';
import { measureAnyRate, measureRateAt } from './gemm-rate.js';
import type { BrokenEngine, ProbeRequest, WorkingEngine } from './probe.js';

async function probe({ name, threads, rate }: ProbeRequest): Promise<WorkingEngine | BrokenEngine> {
  try {
    const engine = await createEngine(name, { threads });
    const { device, kind, maxTensorBytes } = engine;
    const gemmRate = rate && (await (rate === 'any' ? measureAnyRate(engine) : measureRateAt(engine, rate)));
    return { name, device, kind, maxTensorBytes, gemmRate };
  } catch (error) {
    return { name, reason: error instanceof EngineUnavailableError ? error.reason : (error as Error).message };
  }
}

process.send?.(await probe(JSON.parse(process.argv[2] as string) as ProbeRequest));
