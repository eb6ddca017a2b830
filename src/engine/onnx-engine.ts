import { createHash } from 'node:crypto';
import os from 'node:os';
import * as ort from 'onnxruntime-node';
import { EngineError } from '../errors.js';
import type { Engine, EngineOptions, EngineTensor, Program } from './engine.js';
import type { Graph } from './graph.js';
import { encodeOnnx, outputName } from './onnx-encode.js';
import { elements } from './ops.js';

/** Result buffers given back by `dispose`, by length: a solver asks for the same sizes thousands of times. */
class BufferPool {
  private readonly free = new Map<number, Float32Array[]>();

  take(length: number): Float32Array {
    return this.free.get(length)?.pop() ?? new Float32Array(length);
  }

  give(buffer: Float32Array): void {
    const list = this.free.get(buffer.length);
    if (list) list.push(buffer);
    else this.free.set(buffer.length, [buffer]);
  }
}

class OnnxTensor implements EngineTensor {
  private disposed = false;

  constructor(
    readonly data: Float32Array,
    readonly shape: readonly number[],
    /** Undefined for a caller's own array. */
    private readonly pool?: BufferPool,
  ) {}

  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.pool?.give(this.data);
  }

  get live(): Float32Array {
    if (this.disposed) throw new EngineError('a tensor was used after it was disposed of');
    return this.data;
  }
}

/** Unwraps a tensor, refusing another engine's. */
function unwrap(tensor: EngineTensor, name: string): Float32Array {
  if (tensor instanceof OnnxTensor) return tensor.live;
  throw new EngineError(`"${name}" is not a tensor of this engine`);
}

/** Idle sessions kept for the next group, which usually has the same shapes and so the same programs. */
const MAX_IDLE_SESSIONS = 12;

/** Compiled sessions by the hash of their model. */
class SessionCache {
  private readonly idle = new Map<string, ort.InferenceSession[]>();
  private idleCount = 0;

  constructor(private readonly options: ort.InferenceSession.SessionOptions) {}

  async take(key: string, model: Uint8Array): Promise<ort.InferenceSession> {
    const session = this.idle.get(key)?.pop();
    if (!session) return ort.InferenceSession.create(model, this.options);
    this.idleCount--;
    return session;
  }

  async give(key: string, session: ort.InferenceSession): Promise<void> {
    const sessions = this.idle.get(key) ?? [];
    this.idle.delete(key); // re-inserted: the map is in order of last use
    this.idle.set(key, [...sessions, session]);
    if (++this.idleCount <= MAX_IDLE_SESSIONS) return;
    for (const [oldest, [first, ...rest]] of this.idle) {
      if (rest.length) this.idle.set(oldest, rest);
      else this.idle.delete(oldest);
      if (!first) continue;
      this.idleCount--;
      await first.release();
      return;
    }
  }
}

class OnnxProgram implements Program {
  constructor(
    private readonly session: ort.InferenceSession,
    private readonly graph: Graph,
    private readonly pool: BufferPool,
    private readonly release: () => Promise<void>,
  ) {}

  async run(inputs: Readonly<Record<string, EngineTensor>>): Promise<Record<string, EngineTensor>> {
    const feeds: Record<string, ort.Tensor> = {};
    for (const [name, value] of this.graph.inputs) {
      const tensor = inputs[name];
      if (!tensor) throw new EngineError(`input "${name}" is missing`);
      if (String(tensor.shape) !== String(value.shape)) {
        throw new EngineError(`input "${name}" is [${tensor.shape}], expected [${value.shape}]`);
      }
      feeds[name] = new ort.Tensor('float32', unwrap(tensor, name), value.shape);
    }
    const results: Record<string, EngineTensor> = {};
    const fetches: Record<string, ort.Tensor> = {};
    for (const [name, { shape }] of this.graph.outputs) {
      const buffer = this.pool.take(elements(shape));
      results[name] = new OnnxTensor(buffer, shape, this.pool);
      fetches[outputName(name)] = new ort.Tensor('float32', buffer, shape);
    }
    await this.session.run(feeds, fetches);
    return results;
  }

  dispose(): Promise<void> {
    return this.release();
  }
}

/** ONNX Runtime's CPU provider. `run` blocks its thread: use it in a worker. */
export function createOnnxCpuEngine(options: EngineOptions): Engine {
  const pool = new BufferPool();
  const sessions = new SessionCache({
    executionProviders: ['cpu'],
    intraOpNumThreads: options.threads,
    interOpNumThreads: 1,
    executionMode: 'sequential',
    graphOptimizationLevel: 'all',
    // The arena and its patterns keep three to four times what a step needs, at no gain in speed.
    enableCpuMemArena: false,
    enableMemPattern: false,
    logSeverityLevel: 3,
  });
  return {
    name: 'onnx-cpu',
    kind: 'cpu',
    device: os.cpus()[0]?.model.trim() ?? 'CPU',
    async compile(graph) {
      const model = encodeOnnx(graph);
      const key = createHash('sha256').update(model).digest('hex');
      const session = await sessions.take(key, model);
      return new OnnxProgram(session, graph, pool, () => sessions.give(key, session));
    },
    tensor: (data, shape) => new OnnxTensor(data, shape),
    read: async (tensor) => unwrap(tensor, 'read'),
  };
}
