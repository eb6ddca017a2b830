import type { BenchReport } from '../../streams/bench/benchmark.js';
import { COLUMNS, rowCells, STAGE_COLUMNS, stageCells } from '../../streams/bench/report-text.js';
import { formatBytes } from '../format.js';
import { type Column, formatTable, left, right } from './table.js';

const columns = (titles: readonly string[], texts: number): Column[] =>
  titles.map((title, i) => (i < texts ? left(title) : right(title)));

/** The report of `mobe bench` and `npm run bench` as text. */
export function describeReport({ machine, source, folder, rounds, rows, targets, notes }: BenchReport): string {
  const { cpu, cores, memoryBytes, platform, node, load } = machine;
  const piped = rows.filter(({ stages }) => stages?.length);
  return [
    `${source.folder}: ${source.shards.length} shard(s), ${formatBytes(source.bytes)}; written to ${folder}; medians of ${rounds} rounds`,
    `${cpu}, ${cores} cores, ${formatBytes(memoryBytes)}, ${platform}, Node ${node}, load ${load.toFixed(1)} at the start`,
    '',
    formatTable(columns(COLUMNS, 3), rows.map(rowCells)),
    '',
    formatTable(
      columns(STAGE_COLUMNS, 3),
      piped.flatMap((row) => (row.stages ?? []).map((share) => stageCells(row, share))),
    ),
    '',
    ...piped.map(({ stage, way, cache, limit }) => `${stage}: ${way}, ${cache}: ${limit}`),
    '',
    formatTable(
      [left('target'), left('wanted'), left('found'), left('')],
      targets.map(({ target, wanted, found, reached }) => [target, wanted, found, reached ? 'reached' : 'MISSED']),
    ),
    '',
    ...notes,
  ].join('\n');
}
