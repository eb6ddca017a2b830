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
      // Without the arena the system maps and zeroes memory for every intermediate result, which takes half the time of an
      // elementwise operation. Memory patterns would hold three to four times the memory that a step needs.
      enableCpuMemArena: true,
      enableMemPattern: false,
      // Newton–Schulz iterations shrink errors until they are denormal, and products of denormals are ten times slower.
      extra: { session: { set_denormal_as_zero: '1' } },
      logSeverityLevel: 3,
    },
  );
}
