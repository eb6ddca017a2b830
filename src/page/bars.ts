/** Bar charts. */
import { markup, OTHER, OURS, round, svg } from './svg.js';

/** A bar, its label and its spread. */
export interface Bar {
  readonly label: string;
  readonly value: number;
  /** Ends of the spread, in the unit of `value`. */
  readonly low: number;
  readonly high: number;
  /** Whether the bar is this program's, not one of those that it is compared with. */
  readonly ours: boolean;
}

const WIDTH = 720;
const ROW = 22;
const LABEL = 210;
const END = 96;

/**
 * Values as bars from 0. A line through a bar's end shows the spread.
 * @param unit follows each value in the text beside its bar
 */
export function bars(title: string, unit: string, rows: readonly Bar[]): string {
  const most = Math.max(...rows.map(({ high }) => high), Number.MIN_VALUE);
  const x = (value: number): number => round(LABEL + (WIDTH - LABEL - END) * (value / most));
  const body = rows.flatMap(({ label, value, low, high, ours }, i) => {
    const y = i * ROW + 4;
    const middle = y + ROW / 2 - 3;
    return [
      `<text x="${LABEL - 8}" y="${middle + 4}" text-anchor="end">${markup(label)}</text>`,
      `<rect x="${LABEL}" y="${y}" width="${round(x(value) - LABEL)}" height="${ROW - 6}" fill="${ours ? OURS : OTHER}"/>`,
      `<path d="M${x(low)} ${middle}H${x(high)}" stroke="currentColor" stroke-width="1.5"/>`,
      `<text x="${x(high) + 6}" y="${middle + 4}">${value.toFixed(2)} ${markup(unit)}</text>`,
    ];
  });
  return svg({ width: WIDTH, height: rows.length * ROW + 8 }, title, body);
}

/** A stage's time, split into parts that sum to 1. */
export interface Share {
  readonly label: string;
  readonly working: number;
  readonly starved: number;
  readonly blocked: number;
}

const STATES = [
  ['working', OURS],
  ['starved', '#cbd5e1'],
  ['blocked', '#94a3b8'],
] as const;

/** How each stage spent its time, as one stacked bar a stage. */
export function shares(title: string, rows: readonly Share[]): string {
  const scale = WIDTH - LABEL - END;
  const legend = STATES.map(
    ([state, colour], i) =>
      `<rect x="${LABEL + 90 * i}" y="2" width="11" height="11" fill="${colour}"/><text x="${LABEL + 90 * i + 16}" y="12">${state}</text>`,
  );
  const body = rows.flatMap((row, i) => {
    const y = 22 + i * ROW;
    let from = LABEL;
    const parts = STATES.map(([state, colour]) => {
      const width = scale * row[state];
      const part = `<rect x="${round(from)}" y="${y}" width="${round(width)}" height="${ROW - 6}" fill="${colour}"/>`;
      from += width;
      return part;
    });
    return [`<text x="${LABEL - 8}" y="${y + 12}" text-anchor="end">${markup(row.label)}</text>`, ...parts];
  });
  return svg({ width: WIDTH, height: rows.length * ROW + 26 }, title, [...legend, ...body]);
}
