/** Targets of this program compared with the machine's limits. Ratios are from one run with a warm cache. */
import type { Row } from './rows.js';
import { BF16, COPY, OURS, type Way } from './ways.js';

/** A target and the measured value, as text. */
export interface Target {
  readonly target: string;
  readonly wanted: string;
  readonly found: string;
  readonly reached: boolean;
}

const LEAST_RATIO = 0.9;
const LEAST_DECODE = 2;
const LEAST_OF_COPY = 0.8;
const MOST_DELAY_MS = 50;

const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;

/** The targets whose rows were measured. */
export function checkTargets(rows: readonly Row[]): Target[] {
  const find = (stage: Way['stage'], way: string): Row | undefined =>
    rows.find((row) => row.stage === stage && row.way === way && row.cache !== 'cold');
  const ratios: ReadonlyArray<readonly [string, Way['stage']]> = [
    ['our source, of raw pread', 'read'],
    ['our sink, of raw pwrite and fsync', 'write'],
    ['pass-through conversion, of cp and fsync', 'convert'],
  ];
  const targets = ratios.flatMap(([target, stage]): Target[] => {
    const ratio = find(stage, OURS)?.ratio;
    if (!ratio) return [];
    const { median, low, high } = ratio;
    const found = `${percent(median)} (${percent(low)} to ${percent(high)})`;
    return [{ target, wanted: `≥ ${percent(LEAST_RATIO)}`, found, reached: median >= LEAST_RATIO }];
  });
  // The rate is per second of CPU time, because other programs may have used the core too.
  const perCore = (way: string): number | undefined => {
    const row = find('compute', way);
    return row && 1 / row.cpuSecondsPerGigabyte;
  };
  const decode = perCore(BF16);
  const copy = perCore(COPY);
  if (decode !== undefined && copy !== undefined) {
    const wanted = Math.min(LEAST_DECODE, LEAST_OF_COPY * copy);
    targets.push({
      target: 'bf16 to f32, a second of one core',
      wanted: `≥ ${wanted.toFixed(2)} GB`,
      found: `${decode.toFixed(2)} GB`,
      reached: decode >= wanted,
    });
  }
  for (const [target, row] of [
    ['event loop, 99th percentile of its delay in a pass-through conversion', find('convert', OURS)],
    ['the same while a layer is compressed', rows.find(({ stage }) => stage === 'pipeline')],
  ] as const) {
    const delay = row?.loopP99Ms;
    if (delay === undefined) continue;
    targets.push({
      target,
      wanted: `< ${MOST_DELAY_MS} ms`,
      found: `${delay.toFixed(1)} ms`,
      reached: delay < MOST_DELAY_MS,
    });
  }
  return targets;
}
