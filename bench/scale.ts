/** Measures time and memory against the size of a checkpoint and the number of its tensors. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { formatBytes } from '../src/format.js';
import { settle, warm } from '../streams/bench/cache.js';
import { runTask } from '../streams/bench/run-task.js';
import type { Target } from '../streams/bench/targets.js';
import type { Task } from '../streams/bench/task.js';
import { writeSparse } from './sparse.js';

/** One measurement. */
export interface ScaleRow {
  readonly what: string;
  readonly by: 'size' | 'tensors';
  readonly tensors: number;
  /** Size of the checkpoint. */
  readonly bytes: number;
  readonly seconds: number;
  readonly peakRssBytes: number;
}

/** Number of tensors, the same at every size. The effect of more tensors is measured separately. */
const SIZED_TENSORS = 1000;
const SIZES = [0.25, 1, 4] as const;
const LARGE = 16;
const COUNTS = [100, 10_000, 500_000] as const;
/** Size of the checkpoints with many tensors. */
const COUNTED_BYTES = 0.25e9;
const SHARD_BYTES = 1e9;

/** Sizes to measure. */
export interface ScaleOptions {
  /** Measure only the two smallest of each. */
  readonly quick: boolean;
  /** Measure 16 GB too. */
  readonly large: boolean;
  readonly tell: (line: string) => void;
}

/** Measures all sizes and numbers of tensors. Files are written into `folder` and removed. */
export async function measureScale(folder: string, { quick, large, tell }: ScaleOptions): Promise<ScaleRow[]> {
  const rows: ScaleRow[] = [];
  const measure = async (by: ScaleRow['by'], tensors: number, bytes: number): Promise<void> => {
    const model = join(folder, 'sparse');
    const source = await writeSparse(model, { tensors, bytes, shards: Math.max(2, Math.ceil(bytes / SHARD_BYTES)) });
    const tasks: ReadonlyArray<readonly [string, Task]> = [
      ['index and headers', { kind: 'open', model }],
      ...(by === 'size' ? ([['our source', { kind: 'source', source }]] as const) : []),
      ['pass-through conversion', { kind: 'convert', source, folder }],
    ];
    for (const [what, task] of tasks) {
      tell(`${what}: ${formatBytes(bytes)} in ${tensors} tensors`);
      await settle(folder);
      await warm(source);
      const { seconds, peakRssBytes } = await runTask(task);
      rows.push({ what, by, tensors, bytes: source.bytes, seconds, peakRssBytes });
    }
    rmSync(model, { recursive: true });
  };
  for (const gigabytes of quick ? SIZES.slice(0, 2) : large ? [...SIZES, LARGE] : SIZES)
    await measure('size', SIZED_TENSORS, gigabytes * 1e9);
  for (const tensors of quick ? COUNTS.slice(0, 2) : COUNTS) await measure('tensors', tensors, COUNTED_BYTES);
  return rows;
}

export const SCALE_COLUMNS = ['what', 'size', 'tensors', 'seconds', 'GB/s', 'peak RSS'] as const;

export const scaleCells = ({ what, bytes, tensors, seconds, peakRssBytes }: ScaleRow): string[] => [
  what,
  formatBytes(bytes),
  String(tensors),
  seconds.toFixed(2),
  what === 'index and headers' ? '-' : (bytes / 1e9 / seconds).toFixed(2),
  formatBytes(peakRssBytes),
];

const MOST_OPEN_SECONDS = 2;
const MOST_OPEN_BYTES = 300e6;
/** Largest peak over smallest peak of all sizes. A larger ratio means that memory grows with the model. */
const MOST_GROWTH = 1.25;

/** Compares the measurements with the targets. */
export function checkScale(rows: readonly ScaleRow[]): Target[] {
  const targets: Target[] = [];
  const opened = rows.find(({ what, tensors }) => what === 'index and headers' && tensors === COUNTS.at(-1));
  if (opened) {
    const { seconds, peakRssBytes } = opened;
    targets.push({
      target: 'index and headers of 500 000 tensors',
      wanted: `< ${MOST_OPEN_SECONDS} s, < ${MOST_OPEN_BYTES / 1e6} MB`,
      found: `${seconds.toFixed(2)} s, ${(peakRssBytes / 1e6).toFixed(0)} MB`,
      reached: seconds < MOST_OPEN_SECONDS && peakRssBytes < MOST_OPEN_BYTES,
    });
  }
  const peaks = rows
    .filter(({ what, by }) => by === 'size' && what === 'pass-through conversion')
    .map(({ peakRssBytes }) => peakRssBytes);
  const growth = Math.max(...peaks) / Math.min(...peaks);
  targets.push({
    target: 'peak memory of a conversion, largest over smallest of all sizes',
    wanted: `≤ ${MOST_GROWTH}`,
    found: growth.toFixed(2),
    reached: growth <= MOST_GROWTH,
  });
  return targets;
}
