/** Draws races as one picture: loss against seconds, with a chart for each race. */
import { type Chart, type Mark, panels } from '../src/page/charts.js';
import { OTHER, OURS } from '../src/page/svg.js';
import { goalOf } from './levels.js';
import type { Race } from './race.js';

/** Losses above this multiple of the least are not shown: curves pass them in the first moments. */
const SPAN = 3;
/** Marked shares of the reference's time. */
const MARKED = [20, 5];

type Drawn = Pick<Race, 'subject' | 'activation' | 'levels'> & {
  readonly ours: ReadonlyArray<Pick<Race['ours'][number], 'seconds' | 'loss'>>;
  readonly reference?: Pick<NonNullable<Race['reference']>, 'curve'>;
};

/** An SVG file. */
export const fitChart = (races: readonly Drawn[], threads: number): string =>
  panels(
    `Loss against time, ${threads === 1 ? 'one thread' : `${threads} threads`}`,
    races.map(chartOf),
    'the reference’s result; 1/20 and 1/5 of its time',
  );

function chartOf({ subject, activation, ours, reference, levels }: Drawn): Chart {
  const runs = ours.map(({ seconds, loss }) => ({ x: seconds, y: loss }));
  const curve = (reference?.curve ?? []).map(([x, y]) => ({ x, y }));
  const goal = goalOf(levels)?.loss;
  const highest = SPAN * Math.min(...[...runs, ...curve].map(({ y }) => y));
  const shown = ({ y }: { readonly y: number }): boolean => y <= highest;
  const end = curve.at(-1)?.x;
  const marks: Mark[] = [
    ...(end === undefined ? [] : MARKED.map((share) => ({ x: end / share, label: `1/${share}` }))),
    ...(goal === undefined ? [] : [{ y: goal }]),
  ];
  return {
    title: `${subject}, ${activation}`,
    x: { title: 'seconds', scale: 'logarithmic' },
    y: { title: 'loss / σ²', scale: 'logarithmic' },
    series: [
      {
        label: 'reference (Adam in PyTorch), best so far',
        points: curve.filter(shown),
        colour: OTHER,
        dots: false,
      },
      { label: 'varpro, a point a run', points: runs.filter(shown), colour: OURS },
    ],
    marks,
  };
}
