/** Texts of a report's table cells, for the terminal and the page. */
import { formatBytes } from '../../src/format.js';
import type { Row, Spread, StageShare } from './rows.js';

/** Titles of the columns of `rowCells`. */
export const COLUMNS = [
  'stage',
  'way',
  'cache',
  'GB/s',
  'lowest to highest',
  'of its rival',
  'CPU s/GB',
  'peak RSS',
  'in flight',
  'loop p99',
] as const;

/** 0.25 → "25 %". */
export const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;

const NONE = '-';

/** Cells of a row. */
export function rowCells(row: Row): string[] {
  const { stage, way, cache, rate, ratio, against, cpuSecondsPerGigabyte, peakRssBytes, heldBytes, loopP99Ms } = row;
  return [
    stage,
    way,
    cache === 'memory' ? NONE : cache,
    rate.median.toFixed(rate.median < 1 ? 3 : 2),
    range(rate),
    ratio && against ? `${percent(ratio.median)} of ${against}` : NONE,
    cpuSecondsPerGigabyte.toFixed(2),
    formatBytes(peakRssBytes),
    heldBytes === undefined ? NONE : formatBytes(heldBytes),
    loopP99Ms === undefined ? NONE : `${loopP99Ms.toFixed(1)} ms`,
  ];
}

const range = ({ low, high }: Spread): string => `${low.toFixed(2)} to ${high.toFixed(2)}`;

/** Titles of the columns of `stageCells`. */
export const STAGE_COLUMNS = ['pipeline', 'cache', 'stage', 'working', 'starved', 'blocked', 'GB/s'] as const;

/** Cells of a stage of a pipeline. */
export const stageCells = (row: Row, { stage, working, starved, blocked, rate }: StageShare): string[] => [
  `${row.stage}: ${row.way}`,
  row.cache,
  stage,
  percent(working),
  percent(starved),
  percent(blocked),
  rate.toFixed(3),
];
