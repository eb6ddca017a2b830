import { EngineUnavailableError, MobeError } from '../errors.js';
import type { Engine, EngineOptions } from './engine.js';

/** Every engine, one line each. A runtime is loaded only when its engine is created: most commands need none. */
const ENGINES = {
  'onnx-cpu': async (options: EngineOptions) => (await import('./onnx/cpu-engine.js')).createOnnxCpuEngine(options),
  'onnx-webgpu': async () => (await import('./onnx/webgpu-engine.js')).createOnnxWebgpuEngine(),
  'onnx-cuda': async (options: EngineOptions) => (await import('./onnx/cuda-engine.js')).createOnnxCudaEngine(options),
  tensorflow: async (options: EngineOptions) =>
    (await import('./tensorflow/tensorflow-engine.js')).createTensorflowEngine(options),
};

/** Name of an engine. */
export type EngineName = keyof typeof ENGINES;
/** All engines. */
export const ENGINE_NAMES = Object.keys(ENGINES) as [EngineName, ...EngineName[]];

/** The engine that works on every machine. */
export const DEFAULT_ENGINE: EngineName = 'onnx-cpu';

/** Engines that are for checks alone, and why: `auto` never takes them. */
export const FOR_CHECKS: Readonly<Partial<Record<EngineName, string>>> = {
  'onnx-cuda': 'its runtime copies all tensors of a step to the GPU and back',
};

/** Starts an engine. Throws an `EngineUnavailableError` if it cannot run here; it never falls back to another device. */
export async function createEngine(name: EngineName, options: EngineOptions): Promise<Engine> {
  try {
    return await ENGINES[name](options);
  } catch (error) {
    throw error instanceof MobeError ? error : new EngineUnavailableError(name, (error as Error).message);
  }
}
