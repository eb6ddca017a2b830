/**
 * ONNX Runtime's CUDA provider. Its Node binding hands every tensor over in host memory, so each run copies its inputs to
 * the device and its outputs back; `mobe engines` measures the rate with these copies.
 */
import { EngineRunError, EngineUnavailableError } from '../../errors.js';
import { nvidiaName } from '../device-name.js';
import type { Engine, EngineOptions } from '../engine.js';
import { trace } from '../graph.js';
import { tensorCoresAllowed, withTensorCores } from '../tensor-cores.js';
import { createHostEngine } from './host-engine.js';
import { DEVICE_OPTIONS } from './sessions.js';

const REMEDY =
  "It needs Linux x64, an NVIDIA GPU with its driver, CUDA 12, cuDNN 9, and ONNX Runtime's CUDA provider, which the npm package leaves out. " +
  'Fetch that with "ONNXRUNTIME_NODE_INSTALL=cuda12 node node_modules/onnxruntime-node/script/install.js", or use --engine onnx-cpu';

/** ONNX Runtime's CUDA provider. Throws an `EngineUnavailableError` if the provider or a GPU is missing. */
export async function createOnnxCudaEngine({ threads }: EngineOptions): Promise<Engine> {
  const tf32 = tensorCoresAllowed();
  const engine = createHostEngine(
    { name: 'onnx-cuda', device: await nvidiaName(0), kind: 'gpu' },
    { ...DEVICE_OPTIONS, executionProviders: ['cuda'], intraOpNumThreads: threads, graphOptimizationLevel: 'all' },
  );
  try {
    // ONNX Runtime looks for the provider and the device only when a session is created.
    await (await engine.compile(trace({ x: [1] }, ({ x }) => ({ y: x })))).dispose();
  } catch (error) {
    throw new EngineUnavailableError(
      engine.name,
      `${error instanceof EngineRunError ? error.reason : error}. ${REMEDY}`,
    );
  }
  return tf32 ? withTensorCores(engine) : { ...engine, tf32 };
}
