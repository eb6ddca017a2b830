import { cpuName } from './device-name.js';
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
