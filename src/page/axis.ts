/** Axes: pixels for values, and ticks at round numbers. */
import { scaleLinear, scaleLog } from 'd3-scale';
import { round } from './svg.js';

/** How values are spread over an axis. */
export type ScaleKind = 'linear' | 'from zero' | 'logarithmic';

/** A labelled value of an axis. */
export interface Tick {
  readonly value: number;
  readonly text: string;
}

/** One axis of a chart. */
export interface Axis {
  readonly ticks: readonly Tick[];
  /** The pixel of a value. */
  pixel(value: number): number;
}

/** Fewer ticks than this do not show a scale. */
const FEWEST_TICKS = 3;
/** More ticks than this on a logarithmic axis run into each other. */
const MOST_TICKS = 8;
/** Space at each end of a logarithmic axis, as a power of its span. */
const MARGIN = 0.03;
const LEAST_MARGIN = 1.05;

/**
 * An axis that holds all values. Between whole numbers there are no ticks: nothing lies between two layers.
 * @param kind `from zero` starts at 0, `linear` at the least value
 * @param values at least one; above 0 if the axis is logarithmic
 * @param pixels of the axis's two ends
 * @param count about how many ticks there is room for
 */
export function axisOf(
  kind: ScaleKind,
  values: readonly number[],
  pixels: readonly [from: number, to: number],
  count: number,
): Axis {
  const whole = values.every(Number.isInteger);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (kind !== 'logarithmic') {
    const scale = scaleLinear(kind === 'linear' ? [low, high] : [0, high || 1], pixels);
    return axis(kind === 'linear' ? scale : scale.nice(count), evenTicks);
  }
  const margin = Math.max((high / low) ** MARGIN, LEAST_MARGIN);
  return axis(scaleLog([low / margin, high * margin], pixels), (domain) => {
    const ticks = roundTicks(domain);
    return ticks.length < FEWEST_TICKS ? evenTicks(domain) : ticks;
  });

  function axis(
    scale: { (value: number): number; domain(): number[] },
    ticksOf: (domain: readonly number[]) => Tick[],
  ): Axis {
    const ticks = ticksOf(scale.domain()).filter(({ value }) => !whole || Number.isInteger(value));
    return { ticks, pixel: (value) => round(scale(value)) };
  }

  function evenTicks(domain: readonly number[]): Tick[] {
    const scale = scaleLinear(domain, []);
    const text = scale.tickFormat(count, whole ? ',d' : undefined);
    return scale.ticks(count).map((value) => ({ value, text: text(value) }));
  }
}

/** Powers of ten times 1, 2 and 5, or if these are too many, powers of ten. */
function roundTicks(domain: readonly number[]): Tick[] {
  const scale = scaleLog(domain, []);
  const text = scale.tickFormat(Number.POSITIVE_INFINITY, ',r');
  const all = scale.ticks().map((value) => ({ value, text: text(value), factor: value.toExponential().split('e')[0] }));
  const ticks = all.filter(({ factor }) => factor === '1' || factor === '2' || factor === '5');
  return ticks.length <= MOST_TICKS ? ticks : ticks.filter(({ factor }) => factor === '1');
}
