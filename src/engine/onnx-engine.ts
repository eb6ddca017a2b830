import * as ort from 'onnxruntime-node';
import { EngineError } from '../errors.js';
import type { Engine, EngineOptions, EngineTensor, Program } from './engine.js';
import type { Graph } from './graph.js';
import { encodeOnnx, outputName } from './onnx-encode.js';

class OnnxTensor implements EngineTensor {
  constructor(readonly inner: ort.Tensor) {}
  get shape(): readonly number[] {
    return this.inner.dims;
  }
  dispose(): void {
    this.inner.dispose();
  }
}

/** Unwraps a tensor, refusing another engine's. */
function unwrap(tensor: EngineTensor, name: string): ort.Tensor {
  if (tensor instanceof OnnxTensor) return tensor.inner;
  throw new EngineError(`"${name}" is not a tensor of this engine`);
}

class OnnxProgram implements Program {
  constructor(
    private readonly session: ort.InferenceSession,
    private readonly graph: Graph,
  ) {}

  async run(inputs: Readonly<Record<string, EngineTensor>>): Promise<Record<string, EngineTensor>> {
    const feeds: Record<string, ort.Tensor> = {};
    for (const [name, value] of this.graph.inputs) {
      const tensor = inputs[name];
      if (!tensor) throw new EngineError(`input "${name}" is missing`);
      if (String(tensor.shape) !== String(value.shape)) {
        throw new EngineError(`input "${name}" is [${tensor.shape}], expected [${value.shape}]`);
      }
      feeds[name] = unwrap(tensor, name);
    }
    const results = await this.session.run(feeds);
    return Object.fromEntries(
      [...this.graph.outputs.keys()].map((name) => [name, new OnnxTensor(results[outputName(name)] as ort.Tensor)]),
    );
  }

  dispose(): Promise<void> {
    return this.session.release();
  }
}

/** ONNX Runtime's CPU provider. `run` blocks its thread: use it in a worker. */
export function createOnnxCpuEngine(options: EngineOptions): Engine {
  return {
    name: 'onnx-cpu',
    async compile(graph) {
      const session = await ort.InferenceSession.create(encodeOnnx(graph), {
        executionProviders: ['cpu'],
        intraOpNumThreads: options.threads,
        interOpNumThreads: 1,
        executionMode: 'sequential',
        graphOptimizationLevel: 'all',
        logSeverityLevel: 3,
      });
      return new OnnxProgram(session, graph);
    },
    tensor: (data, shape) => new OnnxTensor(new ort.Tensor('float32', data, shape)),
    read: async (tensor) => (await unwrap(tensor, 'read').getData()) as Float32Array,
  };
}
