/** The report of `mobe bench` as one HTML page. */
import { formatBytes } from '../../src/format.js';
import { bars, shares } from '../../src/page/bars.js';
import { htmlPage, paragraphs, type Section, table } from '../../src/page/page.js';
import type { BenchReport } from './benchmark.js';
import { COLUMNS, rowCells, STAGE_COLUMNS, stageCells } from './report-text.js';
import type { Row } from './rows.js';
import { OURS, type Way } from './ways.js';

const TITLES: Readonly<Record<Way['stage'], string>> = {
  read: 'Reading',
  compute: 'Decoding, normalising, checksums',
  hop: 'Between machines',
  write: 'Writing, to the disk',
  convert: 'From one checkpoint to another, nothing factorised',
  pipeline: 'Everything, with a few solver steps',
};

/**
 * The page as HTML.
 * @param more sections to add after the report's charts
 */
export function reportPage(report: BenchReport, more: readonly Section[] = []): string {
  const { machine, source, rounds, rows, targets, notes } = report;
  const { cpu, cores, memoryBytes, platform, node, load } = machine;
  const piped = rows.filter(({ stages }) => stages?.length);
  const stages = [...new Set(rows.map(({ stage }) => stage))];
  const sections: Section[] = [
    {
      title: 'Targets',
      body: table(
        ['target', 'wanted', 'found', ''],
        targets.map(({ target, wanted, found, reached }) => [target, wanted, found, reached ? 'reached' : 'missed']),
      ),
    },
    {
      title: 'What limits it',
      body: [
        paragraphs(piped.map(({ way, cache, stage, limit }) => `${stage}: ${way}, ${cache}: ${limit}`)),
        ...piped.map((row) =>
          shares(
            `${row.stage}: ${row.way}, ${row.cache}`,
            (row.stages ?? []).map((it) => ({ ...it, label: `${row.stage}, ${row.cache}: ${it.stage}` })),
          ),
        ),
      ].join('\n'),
    },
    ...stages.map((stage): Section => {
      const own = rows.filter((row) => row.stage === stage);
      return { title: TITLES[stage], body: bars(TITLES[stage], 'GB/s', own.map(bar)) };
    }),
    ...more,
    { title: 'All figures', body: table(COLUMNS, rows.map(rowCells)) },
    {
      title: 'Stages together',
      body: table(
        STAGE_COLUMNS,
        piped.flatMap((row) => (row.stages ?? []).map((share) => stageCells(row, share))),
      ),
    },
    { title: 'Notes', body: paragraphs(notes) },
  ];
  const intro = [
    `${cpu}, ${cores} cores, ${formatBytes(memoryBytes)}, ${platform}, Node ${node}; load ${load.toFixed(1)} at the start.`,
    `${source.shards.length} shard(s), ${formatBytes(source.bytes)}. Medians of ${rounds} rounds, ways taking turns; lines through the bars are from the lowest to the highest.`,
  ];
  return htmlPage('How fast this machine streams a model', intro, sections);
}

const bar = ({ way, cache, rate }: Row) => ({
  label: cache === 'cold' ? `${way}, cold` : way,
  value: rate.median,
  low: rate.low,
  high: rate.high,
  ours: way === OURS,
});
