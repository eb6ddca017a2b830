/**
 * The memory of a process that converts or fits: one formula, for a run, for a run whose groups are fitted elsewhere, and for
 * `mobe worker`. The peak of its resident memory is expected to be the sum of these terms:
 *
 *     process      Node and this program, with ONNX Runtime's library
 *     headers      of the source: index, plan, places and hashes, by tensor
 *     engine       another engine's library, with its driver
 *     threads      each thread that fits: V8, this program again, and its compiled programs
 *     connections  to workers or to those who ask for work: what may be under way, both ways
 *     groups       weights as stored, that are read and not yet written
 *     targets      the same, decoded to f32, while they are kept for a fit
 *     state        what a solver holds from step to step, with the programs that move it
 *     batch        the programs that compute with a batch of experts
 *     copies       blocks of tensors that are copied
 *     allocator    memory that is free already and not yet given back: buffers before their collection, pieces between others
 *
 * The constants are measured peaks of processes of their own; memory.test.ts compares plans with peaks in every test run.
 */
import type { EngineName } from '../engine/create-engine.js';
import type { FitMemory } from '../methods/method.js';
import { READ_BYTES } from '../sources/files.js';
import { DEFAULT_CREDIT_BYTES } from '../transport/limits.js';

export const MIB = 2 ** 20;

const PROCESS_BYTES = 125 * MIB;
/** At 50 000 tensors. */
const TENSOR_BYTES = 4000;
/** On SwiftShader, and on TensorFlow's CPU. */
const ENGINE_BYTES: Record<EngineName, number> = {
  'onnx-cpu': 0,
  'onnx-webgpu': 400 * MIB,
  'onnx-cuda': 400 * MIB,
  tensorflow: 350 * MIB,
};
const THREAD_BYTES = 115 * MIB;
/** Of a group and of its results, what may be under way. */
const connectionBytes = (group: number): number => 2 * Math.min(group, DEFAULT_CREDIT_BYTES);

/** Blocks that are read and not yet written: two that are being written, one that is being read. */
export const PASS_THROUGH_BLOCKS = 3;
/** Those, and a block's numbers where it is decoded. */
const COPIED_BYTES = (PASS_THROUGH_BLOCKS + 1) * READ_BYTES;

/**
 * The allocator's share of weights and copies, which come and go in many buffers, and its most for each fit: the C library keeps
 * what is freed in pieces below its mapping threshold of 32 MiB, and larger buffers go back at once.
 */
const ALLOCATOR_SHARE = 0.5;
const ALLOCATOR_BYTES = 256 * MIB;

/** Bytes by what they hold; see above. */
export interface MemoryTerms {
  readonly process: number;
  readonly headers: number;
  readonly engine: number;
  readonly threads: number;
  readonly connections: number;
  readonly groups: number;
  readonly targets: number;
  readonly state: number;
  readonly batch: number;
  readonly copies: number;
  readonly allocator: number;
}

/** What a process has to do. */
export interface Workload {
  /** Tensors of the source; 0 where it is read elsewhere. */
  readonly tensors?: number;
  /** The engine of its threads; undefined where it has none. */
  readonly engine?: EngineName | undefined;
  readonly threads?: number;
  /** Of each connection, the bytes of the group that goes over it. */
  readonly connections?: readonly number[];
  /** Bytes of stored weights in memory. */
  readonly groupBytes?: number;
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
  fits = [],
  copies = false,
}: Workload): MemoryTerms {
  const sum = (term: keyof FitMemory): number => fits.reduce((total, fit) => total + fit[term], 0);
  const weights = { groups: groupBytes, targets: sum('targets'), copies: copies ? COPIED_BYTES : 0 };
  return {
    process: PROCESS_BYTES,
    headers: tensors * TENSOR_BYTES,
    engine: engine ? ENGINE_BYTES[engine] : 0,
    threads: threads * THREAD_BYTES,
    connections: connections.reduce((sum, group) => sum + connectionBytes(group), 0),
    ...weights,
    state: sum('state'),
    batch: sum('batch'),
    allocator: Math.min(ALLOCATOR_SHARE * total(weights), ALLOCATOR_BYTES * Math.max(1, fits.length)),
  };
}

/** The expected peak, bytes. */
export const expectedPeak = (terms: MemoryTerms): number => Math.ceil(total({ ...terms }));

const total = (terms: Readonly<Record<string, number>>): number =>
  Object.values(terms).reduce((sum, bytes) => sum + bytes, 0);
