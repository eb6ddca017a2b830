/**
 * The memory of a process that converts or fits. One formula serves a local run, a run whose groups are fitted on other machines,
 * and `mobe worker`. The expected peak of resident memory is the sum of these terms:
 *
 *     process      Node and this program, with ONNX Runtime's library
 *     headers      the source's index, plan, places and hashes, for each of its tensors
 *     engine       the library and the driver of an engine other than onnx-cpu
 *     threads      each thread that fits: V8, this program again, and its compiled programs
 *     connections  bytes in transit to and from workers or clients
 *     groups       weights in their stored form, that are read and not yet written
 *     metric       metrics of groups that wait or are fitted, and what is needed to make the next one
 *     slices       weights that wait for those with which they are one slice of a fused tensor, and slices to be written
 *     targets      the same weights decoded to f32, if they are kept for a fit
 *     state        arrays that a solver keeps between steps, with the programs that update them
 *     batch        the programs that compute with a batch of experts
 *     copies       blocks of tensors that are copied
 *     allocator    freed memory that the system does not have back yet: buffers before their collection, fragments
 *
 * The constants are peaks that were measured in separate processes. memory.test.ts compares plans with peaks in every test run.
 */
import type { EngineName } from '../engine/create-engine.js';
import type { FitMemory } from '../methods/method.js';
import { READ_BYTES } from '../sources/files.js';
import { DEFAULT_CREDIT_BYTES } from '../transport/limits.js';

export const MIB = 2 ** 20;

const PROCESS_BYTES = 125 * MIB;
/** Measured with 50 000 tensors. */
const TENSOR_BYTES = 4000;
/** Measured on SwiftShader and on TensorFlow's CPU. */
const ENGINE_BYTES: Record<EngineName, number> = {
  'onnx-cpu': 0,
  'onnx-webgpu': 400 * MIB,
  'onnx-cuda': 400 * MIB,
  tensorflow: 350 * MIB,
};
const THREAD_BYTES = 115 * MIB;
/** The bytes of a group and of its results that can be in transit at once. */
const connectionBytes = (group: number): number => 2 * Math.min(group, DEFAULT_CREDIT_BYTES);

/** The blocks that are read and not yet written: two are being written, one is being read. */
export const PASS_THROUGH_BLOCKS = 3;
/** The bytes of these blocks, and of one block's decoded numbers. */
const COPIED_BYTES = (PASS_THROUGH_BLOCKS + 1) * READ_BYTES;

/**
 * The allocator's term is this share of the weights and copies, which use many short-lived buffers, and at most this many bytes
 * for each fit. The C library keeps freed buffers below its mapping threshold of 32 MiB. It returns larger ones at once.
 */
const ALLOCATOR_SHARE = 0.5;
const ALLOCATOR_BYTES = 256 * MIB;

/** The bytes of each term; see above. */
export interface MemoryTerms {
  readonly process: number;
  readonly headers: number;
  readonly engine: number;
  readonly threads: number;
  readonly connections: number;
  readonly groups: number;
  readonly metric: number;
  readonly slices: number;
  readonly targets: number;
  readonly state: number;
  readonly batch: number;
  readonly copies: number;
  readonly allocator: number;
}

/** The work of a process, as far as its memory depends on it. */
export interface Workload {
  /** The number of the source's tensors; 0 if another process reads the source. */
  readonly tensors?: number;
  /** The engine of its threads; undefined if it has none. */
  readonly engine?: EngineName | undefined;
  readonly threads?: number;
  /** For each connection, the bytes of the group that it carries. */
  readonly connections?: readonly number[];
  /** The bytes of stored weights in memory. */
  readonly groupBytes?: number;
  /** The bytes of metrics in memory, and of what is held to make one. */
  readonly metricBytes?: number;
  /** The bytes of finished weights and slices in memory. */
  readonly sliceBytes?: number;
  /** The fits that run at the same time. */
  readonly fits?: readonly FitMemory[];
  /** It copies tensors from the source to the output. */
  readonly copies?: boolean;
}

export function memoryTerms({
  tensors = 0,
  engine,
  threads = 0,
  connections = [],
  groupBytes = 0,
  metricBytes = 0,
  sliceBytes = 0,
  fits = [],
  copies = false,
}: Workload): MemoryTerms {
  const sum = (term: keyof FitMemory): number => fits.reduce((total, fit) => total + fit[term], 0);
  const weights = {
    groups: groupBytes,
    slices: sliceBytes,
    targets: sum('targets'),
    copies: copies ? COPIED_BYTES : 0,
  };
  return {
    process: PROCESS_BYTES,
    headers: tensors * TENSOR_BYTES,
    engine: engine ? ENGINE_BYTES[engine] : 0,
    threads: threads * THREAD_BYTES,
    connections: connections.reduce((sum, group) => sum + connectionBytes(group), 0),
    ...weights,
    metric: metricBytes,
    state: sum('state'),
    batch: sum('batch'),
    allocator: Math.min(ALLOCATOR_SHARE * total(weights), ALLOCATOR_BYTES * Math.max(1, fits.length)),
  };
}

/** The expected peak, bytes. */
export const expectedPeak = (terms: MemoryTerms): number => Math.ceil(total({ ...terms }));

const total = (terms: Readonly<Record<string, number>>): number =>
  Object.values(terms).reduce((sum, bytes) => sum + bytes, 0);
