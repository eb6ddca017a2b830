/** The studies' charts and tables as one HTML page. */
import { bars } from '../../src/page/bars.js';
import { type AxisStyle, lines, type Point, type Series } from '../../src/page/charts.js';
import { htmlPage, type Section, table } from '../../src/page/page.js';
import type { Result, ResultRow } from './results.js';
import { share, sizeOf } from './studies.js';
import { cells, columns } from './table.js';
import type { Score } from './workshop.js';

interface StudyRecord {
  readonly text: { readonly name: string; readonly bytes: number };
  readonly source: Score;
  readonly studies: readonly Result[];
}

const SIZE: AxisStyle = { title: 'parameters, % of dense', scale: 'logarithmic' };
const ERROR: AxisStyle = { title: 'relative squared error', scale: 'logarithmic' };
const KL: AxisStyle = { title: 'KL, nats', scale: 'logarithmic' };

const PLOTS: { readonly [name in Result['name']]: (result: Result, all: readonly Result[]) => string[] } = {
  methods: (result) => {
    const against = (key: 'error' | 'divergence'): Series[] =>
      seriesBy('method', result, ({ what, score }) => ({ x: 100 * share(sizeOf(Number(what.m))), y: score[key] }));
    return [
      lines({ title: 'Error against size', x: SIZE, y: ERROR, series: against('error') }),
      lines({ title: 'KL against size', x: SIZE, y: KL, series: against('divergence') }),
    ];
  },
  activations: ({ rows }) => {
    const bar = ({ what, score }: ResultRow) => {
      const value = 100 * score.error;
      return { label: Object.values(what).join(', '), value, low: value, high: value, ours: what.solver === 'varpro' };
    };
    return [bars('Error by activation', '%', rows.map(bar))];
  },
  ranks: (result) => {
    const at = ({ size, score }: ResultRow): Point => ({ x: 100 * share(size?.parameters ?? 0), y: score.error });
    return [lines({ title: 'Error against size', x: SIZE, y: ERROR, series: seriesBy('m', result, at) })];
  },
  noise: ({ rows }, all) => {
    const point = ({ score }: ResultRow): Point => ({ x: score.error, y: score.divergence });
    const noise = rows.filter(({ what }) => typeof what.size === 'number');
    const methods = all.find(({ name }) => name === 'methods');
    const series = [
      { label: 'noise', points: noise.map(point) },
      ...(methods ? seriesBy('method', methods, point) : []),
    ];
    return [lines({ title: 'KL against error', x: ERROR, y: KL, series })];
  },
  experts: (result) => {
    const at = ({ what, score }: ResultRow): Point => ({ x: Number(what.k), y: score.divergence });
    return [
      lines({
        title: 'KL against experts a token',
        x: { title: 'experts a token', scale: 'logarithmic' },
        y: { ...KL, scale: 'from zero' },
        series: seriesBy('model', result, at),
      }),
    ];
  },
};

function seriesBy(key: string, { rows }: Result, point: (row: ResultRow) => Point): Series[] {
  const labels = [...new Set(rows.map(({ what }) => what[key]))];
  return labels.map((label) => ({
    label: typeof label === 'number' ? `${key} = ${label}` : String(label),
    points: rows.filter(({ what }) => what[key] === label).map(point),
  }));
}

/** The page as HTML. */
export function studyPage({ text, source, studies }: StudyRecord): string {
  const intro = `Scored on ${text.bytes} bytes of ${text.name}; the source's nll is ${source.nll.toFixed(4)} nats a byte.`;
  const sections = studies.map((result): Section => {
    const rows = result.rows.map((row) => cells(row, source.nll));
    return {
      title: result.title,
      body: [...PLOTS[result.name](result, studies), table(columns(result), rows)].join('\n'),
    };
  });
  return htmlPage('Studies on the trained fixture', [intro], sections);
}
