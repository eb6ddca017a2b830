/** A report as one page that opens offline: no script, no style sheet, no picture from elsewhere. */
import { formatBytes } from '../../src/format.js';
import type { BenchReport } from './benchmark.js';
import { COLUMNS, rowCells, STAGE_COLUMNS, stageCells } from './report-text.js';
import type { Row } from './rows.js';
import { bars, markup, shares } from './svg.js';
import { OURS, type Way } from './ways.js';

const STYLE = `
body { font: 14px/1.45 system-ui, sans-serif; color: #0f172a; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #e2e8f0 }
td.missed { color: #b91c1c; font-weight: 600 } svg { max-width: 100%; height: auto }
`;

const TITLES: Readonly<Record<Way['stage'], string>> = {
  read: 'Reading',
  compute: 'Decoding, normalising, checksums',
  hop: 'Between machines',
  write: 'Writing, to the disk',
  convert: 'From one checkpoint to another, nothing factorised',
  pipeline: 'Everything, with a few solver steps',
};

/** A section that follows those of the report. */
export interface Section {
  readonly title: string;
  /** HTML. */
  readonly body: string;
}

export const table = (titles: readonly string[], rows: ReadonlyArray<readonly string[]>): string =>
  [
    '<table>',
    `<thead><tr>${titles.map((title) => `<th>${markup(title)}</th>`).join('')}</tr></thead>`,
    '<tbody>',
    ...rows.map((row) => `<tr>${row.map(cell).join('')}</tr>`),
    '</tbody></table>',
  ].join('\n');

export const paragraphs = (lines: readonly string[]): string =>
  lines.map((line) => `<p>${markup(line)}</p>`).join('\n');

/** `intro`: plain text, a paragraph each. */
export const htmlPage = (title: string, intro: readonly string[], sections: readonly Section[]): string =>
  `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<title>${markup(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<h1>${markup(title)}</h1>
${paragraphs(intro)}
${sections.map(({ title, body }) => `<h2>${markup(title)}</h2>\n${body}`).join('\n')}
</body>
</html>
`;

const cell = (text: string): string => `<td${text === 'missed' ? ' class="missed"' : ''}>${markup(text)}</td>`;

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
