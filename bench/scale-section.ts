/** A section of the report's page: time and memory against size and number of tensors. */
import { lines } from '../src/page/charts.js';
import { type Section, table } from '../src/page/page.js';
import { SCALE_COLUMNS, type ScaleRow, scaleCells } from './scale.js';

/** Opening a checkpoint reads only its headers, so it has no throughput. */
const OPEN = 'index and headers';

const X = {
  size: { title: 'GB of checkpoint', value: ({ bytes }: ScaleRow) => bytes / 1e9 },
  tensors: { title: 'tensors', value: ({ tensors }: ScaleRow) => tensors },
} as const;

/** The section with charts and a table. */
export function scaleSection(rows: readonly ScaleRow[]): Section {
  const whats = [...new Set(rows.map(({ what }) => what))];
  const chart = (
    title: string,
    by: ScaleRow['by'],
    yTitle: string,
    value: (row: ScaleRow) => number,
    shown: readonly string[] = whats,
  ): string =>
    lines({
      title,
      x: { title: X[by].title, scale: 'logarithmic' },
      y: { title: yTitle, scale: 'from zero' },
      series: shown
        .map((what) => ({ label: what, rows: rows.filter((row) => row.what === what && row.by === by) }))
        .filter((series) => series.rows.length > 0)
        .map((series) => ({
          label: series.label,
          points: series.rows.map((row) => ({ x: X[by].value(row), y: value(row) })),
        })),
    });
  const mebibytes = ({ peakRssBytes }: ScaleRow): number => peakRssBytes / 2 ** 20;
  return {
    title: 'Against size and number of tensors',
    body: [
      chart(
        'Throughput against size',
        'size',
        'GB/s',
        ({ bytes, seconds }) => bytes / 1e9 / seconds,
        whats.filter((what) => what !== OPEN),
      ),
      chart('Peak memory against size', 'size', 'MiB', mebibytes),
      chart('Time against number of tensors', 'tensors', 'seconds', ({ seconds }) => seconds),
      chart('Peak memory against number of tensors', 'tensors', 'MiB', mebibytes),
      table(SCALE_COLUMNS, rows.map(scaleCells)),
    ].join('\n'),
  };
}
