/** Everything that can be measured. A task is plain data, because it is sent to a process of its own (child.ts). */
import type { Slowdown } from '../flow/stage-clock.js';

/** How often each way is measured. */
export const DEFAULT_ROUNDS = 5;
/** Bytes of the model that are measured. */
export const DEFAULT_BYTES = 2e9;

/** A part of a checkpoint: its folder and the shards that are measured. */
export interface SampleOfModel {
  readonly folder: string;
  /** File names. */
  readonly shards: readonly string[];
  /** Total size of these files. */
  readonly bytes: number;
}

/** Tasks without disk access: decoding, normalising and checksums. */
export const MEMORY_TASKS = ['copy', 'bf16', 'fp16', 'fp8', 'normalise', 'crc32', 'sha256'] as const;
export type MemoryTask = (typeof MEMORY_TASKS)[number];

/** `sha256sum` copies with `cp` and then hashes, because a conversion hashes too. */
export type Command = 'cp' | 'dd' | 'python' | 'sha256sum';

/** One measurement. */
export type Task =
  /** Reads with `FileHandle.read` into one buffer. */
  | { readonly kind: 'pread'; readonly source: SampleOfModel }
  | { readonly kind: 'read stream'; readonly source: SampleOfModel; readonly blockBytes?: number }
  /** Reads with our source and drops the data. */
  | { readonly kind: 'source'; readonly source: SampleOfModel }
  | { readonly kind: 'memory'; readonly what: MemoryTask }
  /** Sends tensors over a WebSocket to another thread. */
  | { readonly kind: 'hop'; readonly bytes: number }
  | { readonly kind: 'pwrite'; readonly folder: string; readonly bytes: number }
  /** Writes data from memory with our sink. */
  | { readonly kind: 'sink'; readonly folder: string; readonly bytes: number }
  /** Copies from our source to our sink, without factorising; without a folder, into nothing. */
  | { readonly kind: 'convert'; readonly source: SampleOfModel; readonly folder?: string; readonly slow?: Slowdown }
  | {
      readonly kind: 'command';
      readonly command: Command;
      readonly source: SampleOfModel;
      readonly folder: string;
      readonly sync: boolean;
    }
  /** Compresses one layer of experts with a few solver steps. */
  | { readonly kind: 'compress'; readonly model: string; readonly folder: string; readonly slow?: Slowdown }
  /** Reads index and headers, without tensor data. */
  | { readonly kind: 'open'; readonly model: string };

/** The same as `READ_BYTES`: raw reads and writes use our block size. */
export const BLOCK_BYTES = 8 * 2 ** 20;
