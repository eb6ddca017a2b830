import { formatTable, left, right } from '../../src/cli/table.js';
import type { Result, ResultRow } from './results.js';
import { share } from './studies.js';

const MEASURES = ['rank', 'parameters', 'of dense', 'error', 'nll', 'more', 'KL', 'same top-1'] as const;

export const columns = ({ rows }: Result): string[] => [...Object.keys(rows[0]?.what ?? {}), ...MEASURES];

/** `sourceNll`: what the nll is more than. */
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

export function studyTable(result: Result, sourceNll: number): string {
  const names = columns(result);
  const align = (title: string, i: number) => (i < names.length - MEASURES.length ? left(title) : right(title));
  return `${result.title}\n${formatTable(
    names.map(align),
    result.rows.map((row) => cells(row, sourceNll)),
  )}`;
}
