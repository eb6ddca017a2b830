/** Line charts, alone and side by side. */
import { type Axis, axisOf, type ScaleKind } from './axis.js';
import { COLOURS, markup, type Size, svg, svgFile } from './svg.js';

/** A point of a line, in the units of the axes. */
export interface Point {
  readonly x: number;
  readonly y: number;
}

/** A line of a chart. */
export interface Series {
  readonly label: string;
  /** In any order. */
  readonly points: readonly Point[];
  /** Default: one that the other series of the chart do not have. */
  readonly colour?: string;
  /** A dot at each point. Default: true. */
  readonly dots?: boolean;
}

/** Title and scale of an axis. */
export interface AxisStyle {
  readonly title: string;
  readonly scale: ScaleKind;
}

/** A dashed line across the chart, at a value of one of its axes. */
export type Mark = { readonly x: number; readonly label: string } | { readonly y: number };

/** A line chart. */
export interface Chart {
  readonly title: string;
  readonly x: AxisStyle;
  readonly y: AxisStyle;
  /** At least one point in all. */
  readonly series: readonly Series[];
  readonly marks?: readonly Mark[];
}

/** Pixels of the rectangle between the axes. */
interface Box {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

const CHART: Size = { width: 720, height: 230 };
const CHART_BOX: Box = { left: 70, right: 550, top: 14, bottom: 194 };

/** One chart as an SVG element. The series' names stand at its right. */
export function lines(chart: Chart): string {
  return svg(CHART, chart.title, [
    ...draw(chart, CHART_BOX),
    ...coloured(chart.series).map(
      ({ label, colour }, i) =>
        `<text x="${CHART_BOX.right + 10}" y="${CHART_BOX.top + 14 + 17 * i}" fill="${colour}">${markup(label)}</text>`,
    ),
  ]);
}

const MOST_COLUMNS = 4;
/** The series' names take as much room as three panels. */
const LEAST_WIDTH = 3;
const PANEL: Size = { width: 270, height: 200 };
const PANEL_BOX: Box = { left: 46, right: 258, top: 26, bottom: 168 };
const HEAD = 64;

/**
 * Charts side by side as an SVG file. All have the same series, whose names stand at the top.
 * @param charts at least one
 * @param markLabel explains the dashed lines
 */
export function panels(title: string, charts: readonly Chart[], markLabel: string): string {
  const columns = Math.min(MOST_COLUMNS, charts.length);
  const size = {
    width: Math.max(columns, LEAST_WIDTH) * PANEL.width,
    height: HEAD + Math.ceil(charts.length / columns) * PANEL.height,
  };
  const key = coloured(charts[0]?.series ?? []).map(
    ({ label, colour, dots = true }) =>
      `<tspan dx="24" fill="${colour}">${dots ? '─●─' : '───'}</tspan><tspan dx="6">${markup(label)}</tspan>`,
  );
  return svgFile(size, title, [
    `<text x="${PANEL_BOX.left}" y="24" font-size="15" font-weight="600">${markup(title)}</text>`,
    `<text x="${PANEL_BOX.left - 24}" y="47" font-size="10">${key.join('')}<tspan dx="24">╌╌╌</tspan><tspan dx="6">${markup(markLabel)}</tspan></text>`,
    ...charts.flatMap((chart, i) => [
      `<g font-size="10" transform="translate(${(i % columns) * PANEL.width} ${HEAD + Math.floor(i / columns) * PANEL.height})">`,
      `<text x="${PANEL_BOX.left}" y="${PANEL_BOX.top - 8}" font-size="11" font-weight="600">${markup(chart.title)}</text>`,
      ...draw(chart, PANEL_BOX),
      '</g>',
    ]),
  ]);
}

/** Pixels that a tick's text takes, with space around it. */
const TICK_WIDTH = 60;
const TICK_HEIGHT = 36;

function draw({ x: xStyle, y: yStyle, series, marks = [] }: Chart, { left, right, top, bottom }: Box): string[] {
  const shown = [...series.flatMap(({ points }) => points), ...marks] as readonly Partial<Point>[];
  const xs = shown.flatMap(({ x = [] }) => x);
  const ys = shown.flatMap(({ y = [] }) => y);
  const x = axisOf(xStyle.scale, xs, [left, right], (right - left) / TICK_WIDTH);
  const y = axisOf(yStyle.scale, ys, [bottom, top], (bottom - top) / TICK_HEIGHT);
  return [
    ...x.ticks.map(
      ({ value, text }) =>
        `<path d="M${x.pixel(value)} ${bottom}v4" stroke="currentColor" stroke-opacity=".5"/><text x="${x.pixel(value)}" y="${bottom + 16}" text-anchor="middle">${text}</text>`,
    ),
    ...y.ticks.map(
      ({ value, text }) =>
        `<path d="M${left} ${y.pixel(value)}H${right}" stroke="currentColor" stroke-opacity=".15"/><text x="${left - 6}" y="${y.pixel(value) + 4}" text-anchor="end">${text}</text>`,
    ),
    `<path d="M${left} ${top}V${bottom}H${right}" fill="none" stroke="currentColor" stroke-opacity=".5"/>`,
    `<text x="${(left + right) / 2}" y="${bottom + 31}" text-anchor="middle">${markup(xStyle.title)}</text>`,
    `<text transform="translate(13 ${(top + bottom) / 2}) rotate(-90)" text-anchor="middle">${markup(yStyle.title)}</text>`,
    ...marks.map((mark) =>
      'x' in mark
        ? `${dashed(`M${x.pixel(mark.x)} ${top}V${bottom}`)}<text x="${x.pixel(mark.x) + 3}" y="${top + 9}">${markup(mark.label)}</text>`
        : dashed(`M${left} ${y.pixel(mark.y)}H${right}`),
    ),
    ...coloured(series).flatMap((one) => curve(one, x, y)),
  ];
}

const dashed = (path: string): string =>
  `<path d="${path}" stroke="currentColor" stroke-opacity=".5" stroke-dasharray="3 3"/>`;

const coloured = (series: readonly Series[]): Array<Series & { readonly colour: string }> =>
  series.map((one, i) => ({ ...one, colour: one.colour ?? (COLOURS[i % COLOURS.length] as string) }));

function curve({ points, colour, dots = true }: Series, x: Axis, y: Axis): string[] {
  const sorted = [...points].sort((a, b) => a.x - b.x).map((point) => [x.pixel(point.x), y.pixel(point.y)] as const);
  if (sorted.length === 0) return [];
  return [
    `<path d="M${sorted.map((at) => at.join(' ')).join('L')}" fill="none" stroke="${colour}" stroke-width="1.8"/>`,
    ...(dots ? sorted.map(([cx, cy]) => `<circle cx="${cx}" cy="${cy}" r="2.8" fill="${colour}"/>`) : []),
  ];
}
