/** Plots as SVG, of text alone: nothing is loaded, nothing runs. */

export interface Bar {
  readonly label: string;
  readonly value: number;
  readonly low: number;
  readonly high: number;
  /** Ours, as against what it is compared with. */
  readonly ours: boolean;
}

export interface Point {
  readonly x: number;
  readonly y: number;
}

export interface Series {
  readonly label: string;
  readonly points: readonly Point[];
}

export const markup = (plain: string): string =>
  plain.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/"/g, '&quot;');

// To be told apart on white and on black.
const OURS = '#ea580c';
const OTHER = '#7c8aa0';
const COLOURS = [OURS, '#3b82f6', '#16a34a', '#a855f7', '#0891b2', '#ca8a04', '#db2777', OTHER] as const;
const WIDTH = 720;
const ROW = 22;
const LABEL = 210;
const END = 96;

const round = (value: number): number => Math.round(10 * value) / 10;

const svg = (height: number, title: string, body: readonly string[]): string =>
  [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img" font-family="system-ui, sans-serif" font-size="12" fill="currentColor">`,
    `<title>${markup(title)}</title>`,
    ...body,
    '</svg>',
  ].join('\n');

/** Medians as bars from 0, the spread as a line through the end. */
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
  return svg(rows.length * ROW + 8, title, body);
}

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

/** What each stage did with the time. */
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
  return svg(rows.length * ROW + 26, title, [...legend, ...body]);
}

const HEIGHT = 230;
const BOX = { left: 70, right: 170, top: 14, bottom: 36 };

/** Most pixels that a tick's text takes. */
const TICK = 34;

/** Of rising values those whose ticks do not run into each other. */
function apart(values: readonly number[], x: (value: number) => number): number[] {
  let end = Number.NEGATIVE_INFINITY;
  return values.filter((value) => {
    if (x(value) < end) return false;
    end = x(value) + TICK;
    return true;
  });
}

interface Axis {
  readonly ticks: readonly number[];
  /** 0 at one end, 1 at the other. */
  position(value: number): number;
}

function fromZero(values: readonly number[]): Axis {
  const most = (Math.max(...values, 0) || 1) * 1.1;
  return {
    ticks: [0, 0.25, 0.5, 0.75, 1].map((share) => (share * most) / 1.1),
    position: (value) => value / most,
  };
}

/** Of values above 0. */
function logarithmic(values: readonly number[]): Axis {
  const low = Math.min(...values) / 1.2;
  const high = Math.max(...values) * 1.2;
  const first = Math.floor(Math.log10(low));
  const decades = Array.from({ length: Math.ceil(Math.log10(high)) - first }, (_, i) => 10 ** (first + i));
  return {
    ticks: decades.flatMap((decade) => [decade, 3 * decade]).filter((tick) => tick >= low && tick <= high),
    position: (value) => Math.log(value / low) / Math.log(high / low),
  };
}

const Y_AXES = { 'from zero': fromZero, logarithmic } as const;

/** From the least value to the greatest, with their ticks at values there are. */
const X_AXES = {
  linear: (value: number) => value,
  logarithmic: Math.log,
} as const;

export interface Axes {
  readonly x?: keyof typeof X_AXES;
  readonly y?: keyof typeof Y_AXES;
}

/** Lines through the points of each series. */
export function lines(
  title: string,
  xTitle: string,
  yTitle: string,
  series: readonly Series[],
  { x: xAxis = 'logarithmic', y: yAxis = 'from zero' }: Axes = {},
): string {
  const points = series.flatMap((it) => it.points);
  const xs = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  const along = X_AXES[xAxis];
  const [first, last] = [along(xs[0] as number), along(xs.at(-1) as number)];
  const axis = Y_AXES[yAxis](points.map((point) => point.y));
  const [right, bottom] = [WIDTH - BOX.right, HEIGHT - BOX.bottom];
  const x = (value: number): number =>
    round(BOX.left + (last > first ? ((right - BOX.left) * (along(value) - first)) / (last - first) : 0));
  const y = (value: number): number => round(bottom - (bottom - BOX.top) * axis.position(value));
  return svg(HEIGHT, title, [
    ...axis.ticks.map(
      (tick) =>
        `<path d="M${BOX.left} ${y(tick)}H${right}" stroke="currentColor" stroke-opacity=".15"/><text x="${BOX.left - 6}" y="${y(tick) + 4}" text-anchor="end">${Number(tick.toPrecision(3))}</text>`,
    ),
    ...apart(xs, x).map(
      (tick) => `<text x="${x(tick)}" y="${bottom + 15}" text-anchor="middle">${Number(tick.toPrecision(3))}</text>`,
    ),
    `<path d="M${BOX.left} ${BOX.top}V${bottom}H${right}" fill="none" stroke="currentColor" stroke-opacity=".5"/>`,
    `<text x="${(BOX.left + right) / 2}" y="${bottom + 31}" text-anchor="middle">${markup(xTitle)}</text>`,
    `<text transform="translate(14 ${(BOX.top + bottom) / 2}) rotate(-90)" text-anchor="middle">${markup(yTitle)}</text>`,
    ...series.flatMap(({ label, points: own }, i) => {
      const colour = COLOURS[i % COLOURS.length];
      const sorted = [...own].sort((a, b) => a.x - b.x);
      const path = sorted.map((point) => `${x(point.x)} ${y(point.y)}`).join('L');
      return [
        `<path d="M${path}" fill="none" stroke="${colour}" stroke-width="1.8"/>`,
        ...sorted.map((point) => `<circle cx="${x(point.x)}" cy="${y(point.y)}" r="3" fill="${colour}"/>`),
        `<text x="${right + 10}" y="${BOX.top + 14 + 17 * i}" fill="${colour}">${markup(label)}</text>`,
      ];
    }),
  ]);
}
