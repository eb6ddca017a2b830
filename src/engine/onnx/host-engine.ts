/** An ONNX Runtime engine whose tensors lie in this process's memory. */
import * as ort from 'onnxruntime-node';
import { EngineError } from '../../errors.js';
import type { Engine, EngineFacts, EngineTensor, Program } from '../engine.js';
import type { Graph } from '../graph.js';
import { matchInputs } from '../match-inputs.js';
import { elements } from '../ops.js';
import { outputName } from './encode.js';
import { freeArray, freeCopies } from './free-memory.js';
import { type Session, Sessions } from './sessions.js';

/**
 * Result buffers given back by `dispose`, by length: a solver asks for the same sizes thousands of times. Free buffers are kept while
 * a program exists. Then they are freed, so that what follows a fit has their memory.
 */
class BufferPool {
  private readonly free = new Map<number, Float32Array[]>();
  private programs = 0;

  open(): void {
    this.programs++;
  }

  close(): void {
    if (--this.programs > 0) return;
    for (const buffers of this.free.values()) for (const buffer of buffers) freeArray(buffer);
    this.free.clear();
  }

  take(length: number): Float32Array {
    return this.free.get(length)?.pop() ?? new Float32Array(length);
  }

  give(buffer: Float32Array): void {
    const list = this.free.get(buffer.length);
    if (this.programs === 0) freeArray(buffer);
    else if (list) list.push(buffer);
    else this.free.set(buffer.length, [buffer]);
  }
}

class HostTensor implements EngineTensor {
  private disposed = false;

  constructor(
    readonly data: Float32Array,
    readonly shape: readonly number[],
    /** The pool that gets the memory back; undefined if the array is the caller's. */
    private readonly pool?: BufferPool,
  ) {}

  part(first: number, count: number): HostTensor {
    const [rows = 1, ...rest] = this.shape;
    if (first + count > rows)
      throw new EngineError(`a tensor of ${rows} rows has no rows ${first} to ${first + count}`);
    const size = elements(rest);
    return new HostTensor(this.live.subarray(first * size, (first + count) * size), [count, ...rest]);
  }

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

/** The array of a tensor. Throws an `EngineError` for another engine's tensor. */
function unwrap(tensor: EngineTensor, name: string): Float32Array {
  if (tensor instanceof HostTensor) return tensor.live;
  throw new EngineError(`"${name}" is not a tensor of this engine`);
}

class HostProgram implements Program {
  constructor(
    private readonly session: Session,
    private readonly graph: Graph,
    private readonly pool: BufferPool,
  ) {}

  async run(
    inputs: Readonly<Record<string, EngineTensor>>,
    into: Readonly<Record<string, EngineTensor>> = {},
  ): Promise<Record<string, EngineTensor>> {
    const feeds: Record<string, ort.Tensor> = {};
    for (const [name, tensor] of matchInputs(this.graph, inputs))
      feeds[name] = new ort.Tensor('float32', unwrap(tensor, name), tensor.shape);
    const results: Record<string, EngineTensor> = {};
    const fetches: Record<string, ort.Tensor> = {};
    for (const [name, { shape }] of this.graph.outputs) {
      const given = into[name];
      if (given && String(given.shape) !== String(shape))
        throw new EngineError(`result "${name}" is [${shape}], the tensor for it [${given.shape}]`);
      const tensor = given ?? new HostTensor(this.pool.take(elements(shape)), shape, this.pool);
      results[name] = tensor;
      fetches[outputName(name)] = new ort.Tensor('float32', unwrap(tensor, name), shape);
    }
    freeCopies(await this.session.run(feeds, fetches), fetches);
    return results;
  }

  dispose(): Promise<void> {
    this.pool.close();
    return this.session.release();
  }
}

/** An engine on an ONNX Runtime provider that takes tensors from host memory. Its `run` blocks the thread: use it in a worker. */
export function createHostEngine(facts: EngineFacts, options: ort.InferenceSession.SessionOptions): Engine {
  const pool = new BufferPool();
  const sessions = new Sessions(facts, options);
  return {
    ...facts,
    writesParts: true,
    compile: async (graph) => {
      const session = await sessions.open(graph);
      pool.open();
      return new HostProgram(session, graph, pool);
    },
    tensor: (data, shape, owned = false) => new HostTensor(data, shape, owned ? pool : undefined),
    read: async (tensor) => unwrap(tensor, 'read'),
  };
}
