import { printable } from '../format.js';

/** Formats tables as text with aligned columns: numbers right, text left. */
export interface Column {
  readonly title: string;
  readonly align: 'left' | 'right';
}

export const left = (title: string): Column => ({ title, align: 'left' });
export const right = (title: string): Column => ({ title, align: 'right' });

export function formatTable(columns: readonly Column[], texts: ReadonlyArray<readonly string[]>): string {
  const rows = texts.map((row) => row.map(printable));
  const widths = columns.map(({ title }, i) => Math.max(title.length, ...rows.map((row) => (row[i] ?? '').length)));
  const line = (cells: readonly string[]): string =>
    columns
      .map(({ align }, i) => {
        const cell = cells[i] ?? '';
        return align === 'right' ? cell.padStart(widths[i] as number) : cell.padEnd(widths[i] as number);
      })
      .join('  ')
      .trimEnd();
  const titled = columns.some(({ title }) => title) ? [line(columns.map(({ title }) => title))] : [];
  return [...titled, ...rows.map(line)].join('\n');
}
