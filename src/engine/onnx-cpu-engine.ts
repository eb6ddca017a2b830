import { cpus } from 'node:os';
import type { Engine, EngineOptions } from './engine.js';
import { createHostEngine } from './onnx-host-engine.js';

/** ONNX Runtime's CPU provider. */
export function createOnnxCpuEngine({ threads }: EngineOptions): Engine {
  return createHostEngine(
    { name: 'onnx-cpu', device: cpuName(), kind: 'cpu' },
    {
      executionProviders: ['cpu'],
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      executionMode: 'sequential',
      graphOptimizationLevel: 'all',
      // The arena and its patterns keep three to four times what a step needs, at no gain in speed.
      enableCpuMemArena: false,
      enableMemPattern: false,
      logSeverityLevel: 3,
    },
  );
}

/** The processor's model, as the system names it. */
export const cpuName = (): string => cpus()[0]?.model.trim() || `${process.arch} processor`;
