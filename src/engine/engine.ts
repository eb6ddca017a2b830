/**
 * An engine runs traced graphs. Its tensors are opaque, so that state can stay on a device between runs. `read` copies a
 * tensor back.
 */
import type { Graph } from './graph.js';

/** A tensor held by the engine that made it. */
export interface EngineTensor {
  readonly shape: readonly number[];
  /**
   * Rows `first` to `first + count` of the first axis, in the same memory. Only of engines with `writesParts`. The part need not be
   * disposed of, and is valid as long as the tensor.
   */
  part?(first: number, count: number): EngineTensor;
  /** Frees the tensor. It must not be used afterwards. */
  dispose(): void;
}

/** A compiled graph. */
export interface Program {
  /**
   * Runs the graph. The results are new tensors, which the caller must dispose of. The inputs do not change.
   * @param into tensors to which results are written, by the names of these. They must share no memory with an input. Only of engines
   * with `writesParts`
   */
  run(
    inputs: Readonly<Record<string, EngineTensor>>,
    into?: Readonly<Record<string, EngineTensor>>,
  ): Promise<Record<string, EngineTensor>>;
  dispose(): Promise<void>;
}

/** The precision of matrix products: `tf32` may round their factors to 10 bits of mantissa, as tensor cores do. Sums are in f32. */
export const PRECISIONS = ['f32', 'tf32'] as const;
export type Precision = (typeof PRECISIONS)[number];

/** The device that an engine really runs on, even if another was requested. */
export interface EngineFacts {
  readonly name: string;
  /** The processor's or graphics adapter's own name. */
  readonly device: string;
  /** `gpu` is hardware; a graphics device emulated in software is a `cpu`. */
  readonly kind: 'cpu' | 'gpu';
  /** Most bytes one tensor can have; undefined if only memory limits it. */
  readonly maxTensorBytes?: number | undefined;
  /** Whether results can be written to tensors that exist, and to parts of them. It is so where tensors lie in this process's memory. */
  readonly writesParts?: boolean | undefined;
  /** Whether programs can be compiled with products in TF32; false if the environment forbids it. Undefined if the engine never has it. */
  readonly tf32?: boolean | undefined;
}

/** Compiles graphs and holds their tensors, f32 and row-major. */
export interface Engine extends EngineFacts {
  /**
   * Makes a graph ready to run. Throws `TensorTooLargeError` and `EngineError` where the device cannot run it.
   * @param precision of its products; default: f32. Engines without `tf32` multiply in f32
   */
  compile(graph: Graph, precision?: Precision): Promise<Program>;
  /**
   * Makes a tensor, row-major. The engine may use the array in place: do not write to it while the tensor lives.
   * @param owned the array has a buffer to itself, and the caller does not use it again: the engine may reuse or free its memory
   */
  tensor(data: Float32Array, shape: readonly number[], owned?: boolean): EngineTensor;
  /** A tensor's content, row-major. The array may be the tensor's own memory: use it before you dispose of the tensor. */
  read(tensor: EngineTensor): Promise<Float32Array>;
}

/** Resources of an engine. */
export interface EngineOptions {
  /** CPU threads of one engine. */
  threads: number;
}
