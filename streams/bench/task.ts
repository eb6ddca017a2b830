/** What can be measured. A task is data: it goes to a process of its own (child.ts). */
import type { Slowdown } from '../flow/stage-clock.js';

/** Times everything is measured. */
export const DEFAULT_ROUNDS = 5;
/** Bytes of the model that take part. */
export const DEFAULT_BYTES = 2e9;

/** Where a source is: a folder, and the shards of it that take part. */
export interface SampleOfModel {
  readonly folder: string;
  /** File names. */
  readonly shards: readonly string[];
  /** Of those files. */
  readonly bytes: number;
}

export const MEMORY_TASKS = ['copy', 'bf16', 'fp16', 'fp8', 'normalise', 'crc32', 'sha256'] as const;
export type MemoryTask = (typeof MEMORY_TASKS)[number];

/** `sha256sum`: of what `cp` wrote, since a conversion hashes too. */
export type Command = 'cp' | 'dd' | 'python' | 'sha256sum';

export type Task =
  /** `FileHandle.read` into one buffer. */
  | { readonly kind: 'pread'; readonly source: SampleOfModel }
  | { readonly kind: 'read stream'; readonly source: SampleOfModel; readonly blockBytes?: number }
  /** Our source, into nothing. */
  | { readonly kind: 'source'; readonly source: SampleOfModel }
  | { readonly kind: 'memory'; readonly what: MemoryTask }
  /** Tensors to another thread over a WebSocket of this machine. */
  | { readonly kind: 'hop'; readonly bytes: number }
  | { readonly kind: 'pwrite'; readonly folder: string; readonly bytes: number }
  /** Our sink, from nothing. */
  | { readonly kind: 'sink'; readonly folder: string; readonly bytes: number }
  /** Source to sink, nothing factorised; without a folder into nothing. */
  | { readonly kind: 'convert'; readonly source: SampleOfModel; readonly folder?: string; readonly slow?: Slowdown }
  | {
      readonly kind: 'command';
      readonly command: Command;
      readonly source: SampleOfModel;
      readonly folder: string;
      readonly sync: boolean;
    }
  /** A layer of experts through everything, with a few solver steps. */
  | { readonly kind: 'compress'; readonly model: string; readonly folder: string; readonly slow?: Slowdown }
  /** Index and headers, no tensor data. */
  | { readonly kind: 'open'; readonly model: string };

/** As `READ_BYTES`: raw reads and writes are compared at our own block size. */
export const BLOCK_BYTES = 8 * 2 ** 20;
