import { formatTable, left, right } from '../../src/cli/table.js';
import type { Result, ResultRow } from './results.js';
import { share } from './studies.js';

const MEASURES = ['rank', 'parameters', 'of dense', 'error', 'nll', 'more', 'KL', 'same top-1'] as const;

/** Column titles of a study's table. */
export const columns = ({ rows }: Result): string[] => [...Object.keys(rows[0]?.what ?? {}), ...MEASURES];

/**
 * Cells of a row.
 * @param sourceNll the source's nll, which is subtracted in the column "more"
 */
export function cells({ what, size, score }: ResultRow, sourceNll: number): string[] {
  const { error, nll, divergence, agreement } = score;
  return [
    ...Object.values(what).map(String),
    ...(size
      ? [String(size.rank), String(size.parameters), `${(100 * share(size.parameters)).toFixed(1)} %`]
      : ['', '', '']),
    error.toFixed(4),
    nll.toFixed(4),
    (nll - sourceNll).toFixed(4),
    divergence.toFixed(4),
    `${(100 * agreement).toFixed(1)} %`,
  ];
}

/** A study's table as text. */
export function studyTable(result: Result, sourceNll: number): string {
  const names = columns(result);
  const align = (title: string, i: number) => (i < names.length - MEASURES.length ? left(title) : right(title));
  return `${result.title}\n${formatTable(
    names.map(align),
    result.rows.map((row) => cells(row, sourceNll)),
  )}`;
}
