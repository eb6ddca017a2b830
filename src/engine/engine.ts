/**
 * An engine runs traced graphs. Tensors that live on it are opaque, so that state can stay on a device between runs;
 * only what is asked for comes back.
 */
import type { Graph } from './graph.js';

/** A tensor held by the engine that made it. */
export interface EngineTensor {
  readonly shape: readonly number[];
  /** Frees it. Using it afterwards is a bug. */
  dispose(): void;
}

export interface Program {
  /** Runs the graph. The results are new tensors, owned by the caller; the inputs are left as they were. */
  run(inputs: Readonly<Record<string, EngineTensor>>): Promise<Record<string, EngineTensor>>;
  dispose(): Promise<void>;
}

/** What an engine runs on: what is really there, not what was asked for. */
export interface EngineFacts {
  readonly name: string;
  /** The processor's or graphics adapter's own name. */
  readonly device: string;
  /** `gpu` is hardware; a graphics device emulated in software is a `cpu`. */
  readonly kind: 'cpu' | 'gpu';
  /** Most bytes one tensor can have; undefined where only memory limits it. */
  readonly maxTensorBytes?: number | undefined;
}

export interface Engine extends EngineFacts {
  compile(graph: Graph): Promise<Program>;
  /** A tensor with this content, row-major. The array may be used in place: do not write to it while the tensor lives. */
  tensor(data: Float32Array, shape: readonly number[]): EngineTensor;
  /** The content of a tensor, row-major. The array may be the tensor's own memory: read it before disposing of it. */
  read(tensor: EngineTensor): Promise<Float32Array>;
}

export interface EngineOptions {
  /** CPU threads of one engine. */
  threads: number;
}
