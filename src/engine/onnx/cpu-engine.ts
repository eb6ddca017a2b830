import { cpuName } from '../device-name.js';
import type { Engine, EngineOptions } from '../engine.js';
import { createHostEngine } from './host-engine.js';

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
      // Without the arena every intermediate is mapped and zeroed anew, half the time of an elementwise pass. Its memory
      // patterns would keep three to four times what a step needs.
      enableCpuMemArena: true,
      enableMemPattern: false,
      // What Newton–Schulz iterations leave of an error soon is denormal, and products of those are ten times slower.
      extra: { session: { set_denormal_as_zero: '1' } },
      logSeverityLevel: 3,
    },
  );
}
