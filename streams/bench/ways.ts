/** The stages of the dataflow, and for each stage the ways that are measured and compared. */
import type { Slowdown } from '../flow/stage-clock.js';
import { type Command, MEMORY_TASKS, type MemoryTask, type SampleOfModel, type Task } from './task.js';

/** One way to do the work of a stage. */
export interface Way {
  readonly stage: 'read' | 'compute' | 'hop' | 'write' | 'convert' | 'pipeline';
  readonly way: string;
  /** Whether the source's pages are cached; `memory` if the task reads no file. */
  readonly cache: 'warm' | 'cold' | 'memory';
  /** The way of the same stage and cache that it is compared with. */
  readonly against?: string;
  readonly task: Task;
}

/** The source, and the measurements that are possible on this machine. */
export interface WayOptions {
  readonly source: SampleOfModel;
  /** Folder for written files. */
  readonly folder: string;
  /** Bytes that are written from memory or sent. */
  readonly bytes: number;
  readonly cold: boolean;
  readonly commands: readonly Command[];
  /** Whether to measure the compression of a layer too. */
  readonly compress: boolean;
  readonly slow?: Slowdown | undefined;
}

const STREAM_BYTES = 4 * 2 ** 20;

/** Names of the tasks in memory. */
const MEMORY_NAMES: Readonly<Record<MemoryTask, string>> = {
  copy: 'copy of f32',
  bf16: 'bf16 to f32',
  fp16: 'fp16 to f32',
  fp8: 'fp8 blocks to f32',
  normalise: 'normalise bf16',
  crc32: 'crc32',
  sha256: 'sha256',
};

/** Names of ways that reports refer to. */
export const OURS = 'ours';
/** The same conversion, what it writes thrown away: the disk aside. */
export const TO_NOTHING = 'ours, to nothing';
export const PREAD = 'pread 8 MiB';
export const PWRITE = 'pwrite 8 MiB + fsync';
export const CP = 'cp + fsync';
export const BF16 = MEMORY_NAMES.bf16;
export const COPY = MEMORY_NAMES.copy;
export const SHA256 = MEMORY_NAMES.sha256;

/** All ways to measure, in their order. */
export function listWays({ source, folder, bytes, cold, commands, compress, slow }: WayOptions): Way[] {
  const slowed = slow ? { slow } : {};
  const reads = (cache: 'warm' | 'cold'): Way[] => [
    { stage: 'read', way: PREAD, cache, task: { kind: 'pread', source } },
    { stage: 'read', way: OURS, cache, against: PREAD, task: { kind: 'source', source } },
    {
      stage: 'read',
      way: 'createReadStream 4 MiB',
      cache,
      against: PREAD,
      task: { kind: 'read stream', source, blockBytes: STREAM_BYTES },
    },
    { stage: 'read', way: 'createReadStream', cache, against: PREAD, task: { kind: 'read stream', source } },
  ];
  const command = (name: Command, sync: boolean): Way[] =>
    commands.includes(name)
      ? [
          {
            stage: 'convert',
            way: `${COMMAND_NAMES[name]}${sync ? ' + fsync' : ''}`,
            cache: 'warm',
            ...(!(name === 'cp' && sync) && { against: CP }),
            task: { kind: 'command', command: name, source, folder, sync },
          },
        ]
      : [];
  const conversion = (cache: 'warm' | 'cold'): Way => ({
    stage: 'convert',
    way: OURS,
    cache,
    ...(cache === 'warm' && { against: CP }),
    task: { kind: 'convert', source, folder, ...slowed },
  });
  return [
    ...reads('warm'),
    ...(cold ? reads('cold') : []),
    ...MEMORY_TASKS.map(
      (what): Way => ({
        stage: 'compute',
        way: MEMORY_NAMES[what],
        cache: 'memory',
        ...(what !== 'copy' && { against: COPY }),
        task: { kind: 'memory', what },
      }),
    ),
    { stage: 'hop', way: 'WebSocket, loopback', cache: 'memory', task: { kind: 'hop', bytes } },
    { stage: 'write', way: PWRITE, cache: 'memory', task: { kind: 'pwrite', folder, bytes } },
    { stage: 'write', way: OURS, cache: 'memory', against: PWRITE, task: { kind: 'sink', folder, bytes } },
    ...command('cp', true),
    conversion('warm'),
    { stage: 'convert', way: TO_NOTHING, cache: 'warm', against: CP, task: { kind: 'convert', source, ...slowed } },
    ...command('cp', false),
    ...command('sha256sum', true),
    ...command('dd', true),
    ...command('python', true),
    ...(cold ? [conversion('cold')] : []),
    ...(compress
      ? [
          {
            stage: 'pipeline',
            way: 'compress a layer',
            cache: 'warm',
            task: { kind: 'compress', model: source.folder, folder, ...slowed },
          } as const,
        ]
      : []),
  ];
}

const COMMAND_NAMES: Readonly<Record<Command, string>> = {
  cp: 'cp',
  dd: 'dd bs=8M',
  sha256sum: 'cp + sha256sum',
  python: 'safetensors in Python',
};
