import { EngineUnavailableError } from '../errors.js';
import type { Engine, EngineName, EngineOptions } from './engine.js';

/** Starts an engine. Runtimes are loaded only when asked for: reading headers needs none of them. */
export async function createEngine(name: EngineName, options: EngineOptions): Promise<Engine> {
  try {
    if (name === 'tensorflow') {
      const { createTensorflowEngine } = await import('./tensorflow-engine.js');
      return await createTensorflowEngine(options);
    }
    const { createOnnxCpuEngine } = await import('./onnx-engine.js');
    return createOnnxCpuEngine(options);
  } catch (error) {
    if (error instanceof EngineUnavailableError) throw error;
    throw new EngineUnavailableError(name, (error as Error).message);
  }
}
