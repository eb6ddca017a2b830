/** Small multiples of loss against seconds, both logarithmic, as an SVG that needs nothing else. */
import type { Point } from './levels.js';

export interface Panel {
  readonly title: string;
  /** One point a run. */
  readonly ours: readonly Point[];
  /** Its best so far. */
  readonly reference: readonly Point[];
  /** The loss to reach, drawn across. */
  readonly level?: number;
}

const COLUMNS = 4;
const WIDTH = 270;
const HEIGHT = 200;
const HEAD = 64;
const LEGEND_WIDTH = 780;
const BOX = { left: 46, right: 12, top: 26, bottom: 32 };
/** Losses above this multiple of the least are cut off: they pass in the first moments. */
const SPAN = 3;
/** Shares of the reference's time that are marked. */
const MARKS = [1 / 20, 1 / 5];

const OURS = '#c2410c';
const REFERENCE = '#475569';

export function plot(title: string, panels: readonly Panel[]): string {
  const columns = Math.min(COLUMNS, panels.length);
  const width = Math.max(LEGEND_WIDTH, columns * WIDTH);
  const height = HEAD + Math.ceil(panels.length / columns) * HEIGHT;
  const placed = panels.map(
    (panel, i) =>
      `<g transform="translate(${(i % columns) * WIDTH} ${HEAD + Math.floor(i / columns) * HEIGHT})">\n${draw(panel)}\n</g>`,
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="system-ui, sans-serif" font-size="10" fill="#334155">
<rect width="100%" height="100%" fill="#fff"/>
<clipPath id="box"><rect x="${BOX.left}" y="${BOX.top}" width="${WIDTH - BOX.left - BOX.right}" height="${HEIGHT - BOX.top - BOX.bottom}"/></clipPath>
<text x="${BOX.left}" y="24" font-size="15" font-weight="600">${text(title)}</text>
<g transform="translate(${BOX.left} 43)" stroke-width="1.6">
<path d="M0 0h22" stroke="${REFERENCE}"/>
<path d="M264 0h22" stroke="${OURS}"/><circle cx="275" r="2.6" fill="${OURS}"/>
<path d="M420 0h22" stroke="#94a3b8" stroke-dasharray="3 3" stroke-width="1"/>
</g>
<text y="47"><tspan x="${BOX.left + 28}">reference (Adam in PyTorch), best so far</tspan><tspan x="${BOX.left + 292}">varpro, a point a run</tspan><tspan x="${BOX.left + 448}">the reference’s result; 1/20 and 1/5 of its time</tspan></text>
${placed.join('\n')}
</svg>
`;
}

function draw({ title, ours, reference, level }: Panel): string {
  const losses = [...ours, ...reference].map(([, loss]) => loss).concat(level ?? []);
  const least = Math.min(...losses);
  const low = least / 1.06;
  const high = Math.max(Math.min(SPAN * least, 1.03 * Math.max(...losses)), 1.1 * least);
  const shown = [...ours, ...reference].filter(([, loss]) => loss <= high).map(([seconds]) => seconds);
  const first = Math.min(...shown) / 1.3;
  const last = Math.max(...shown) * 1.3;
  const x = scale(first, last, BOX.left, WIDTH - BOX.right);
  const y = scale(low, high, HEIGHT - BOX.bottom, BOX.top);
  const bottom = HEIGHT - BOX.bottom;
  const end = reference.at(-1)?.[0];
  return [
    `<text x="${BOX.left}" y="${BOX.top - 8}" font-size="11" font-weight="600">${text(title)}</text>`,
    ...decades(first, last).map(
      (tick) =>
        `<path d="M${x(tick)} ${BOX.top}V${bottom}" stroke="#e2e8f0"/><text x="${x(tick)}" y="${bottom + 13}" text-anchor="middle">${tick}</text>`,
    ),
    ...evenly(low, high).map(
      (tick) =>
        `<path d="M${BOX.left} ${y(Number(tick))}H${WIDTH - BOX.right}" stroke="#e2e8f0"/><text x="${BOX.left - 5}" y="${y(Number(tick)) + 3.5}" text-anchor="end">${tick}</text>`,
    ),
    `<path d="M${BOX.left} ${BOX.top}V${bottom}H${WIDTH - BOX.right}" fill="none" stroke="#94a3b8"/>`,
    `<text x="${(BOX.left + WIDTH - BOX.right) / 2}" y="${bottom + 26}" text-anchor="middle">seconds</text>`,
    `<text transform="translate(11 ${(BOX.top + bottom) / 2}) rotate(-90)" text-anchor="middle">loss / σ²</text>`,
    ...MARKS.filter((share) => end && end * share > first).map((share) =>
      mark(x((end ?? 0) * share), `1/${1 / share}`),
    ),
    ...(level === undefined ? [] : [dashed(`M${BOX.left} ${y(level)}H${WIDTH - BOX.right}`)]),
    line(reference, REFERENCE),
    line(ours, OURS),
    ...ours.map((at) => `<circle cx="${x(at[0])}" cy="${y(at[1])}" r="2.6" fill="${OURS}" clip-path="url(#box)"/>`),
  ].join('\n');

  function line(points: readonly Point[], colour: string): string {
    const at = points.map(([seconds, loss]) => `${x(seconds)} ${y(loss)}`).join('L');
    return at && `<path d="M${at}" fill="none" stroke="${colour}" stroke-width="1.6" clip-path="url(#box)"/>`;
  }
}

/** A share of the reference's time. */
const mark = (at: number, label: string): string =>
  `${dashed(`M${at} ${BOX.top}V${HEIGHT - BOX.bottom}`)}<text x="${at + 3}" y="${BOX.top + 9}" fill="#64748b">${label}</text>`;

const dashed = (path: string): string =>
  `<path d="${path}" stroke="#94a3b8" stroke-dasharray="3 3" clip-path="url(#box)"/>`;

/** Logarithmic, rounded to a tenth of a pixel. */
const scale =
  (low: number, high: number, from: number, to: number) =>
  (value: number): number =>
    Math.round(10 * (from + ((to - from) * Math.log(value / low)) / Math.log(high / low))) / 10;

/** Powers of ten; where those are too few, twice and five times them. */
function decades(low: number, high: number): number[] {
  const factors = high / low > 200 ? [1] : [1, 2, 5];
  const exponents = Array.from({ length: 12 }, (_, i) => i - 4);
  return exponents
    .flatMap((exponent) => factors.map((factor) => Number(`${factor}e${exponent}`)))
    .filter((tick) => tick >= low && tick <= high);
}

/** Three to seven round numbers. */
function evenly(low: number, high: number): string[] {
  const unit = 10 ** Math.floor(Math.log10((high - low) / 3));
  const step = [5, 2, 1].map((factor) => factor * unit).find((it) => it <= (high - low) / 3) as number;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const ticks: string[] = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push((i * step).toFixed(digits));
  return ticks;
}

const text = (plain: string): string => plain.replace(/&/g, '&amp;').replace(/</g, '&lt;');
