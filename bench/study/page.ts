/** The studies' plots and tables as one page. */
import { htmlPage, type Section, table } from '../../src/page/page.js';
import { bars, lines, type Point, type Series } from '../../src/page/svg.js';
import type { Result, ResultRow } from './results.js';
import { share, sizeOf } from './studies.js';
import { cells, columns } from './table.js';
import type { Score } from './workshop.js';

interface StudyRecord {
  readonly text: { readonly name: string; readonly bytes: number };
  readonly source: Score;
  readonly studies: readonly Result[];
}

const OF_DENSE = 'parameters, % of dense';
const ERROR = 'relative squared error';
const KL = 'KL, nats';

const PLOTS: { readonly [name in Result['name']]: (result: Result, all: readonly Result[]) => string[] } = {
  methods: (result) => {
    const against = (key: 'error' | 'divergence'): Series[] =>
      seriesBy('method', result, ({ what, score }) => ({ x: 100 * share(sizeOf(Number(what.m))), y: score[key] }));
    return [
      lines('Error against size', OF_DENSE, ERROR, against('error'), { y: 'logarithmic' }),
      lines('KL against size', OF_DENSE, KL, against('divergence'), { y: 'logarithmic' }),
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
    return [lines('Error against size', OF_DENSE, ERROR, seriesBy('m', result, at), { y: 'logarithmic' })];
  },
  noise: ({ rows }, all) => {
    const point = ({ score }: ResultRow): Point => ({ x: score.error, y: score.divergence });
    const noise = rows.filter(({ what }) => typeof what.size === 'number');
    const methods = all.find(({ name }) => name === 'methods');
    const series = [
      { label: 'noise', points: noise.map(point) },
      ...(methods ? seriesBy('method', methods, point) : []),
    ];
    return [lines('KL against error', ERROR, KL, series, { y: 'logarithmic' })];
  },
  experts: (result) => {
    const at = ({ what, score }: ResultRow): Point => ({ x: Number(what.k), y: score.divergence });
    return [lines('KL against experts a token', 'experts a token', KL, seriesBy('model', result, at))];
  },
};

function seriesBy(key: string, { rows }: Result, point: (row: ResultRow) => Point): Series[] {
  const labels = [...new Set(rows.map(({ what }) => what[key]))];
  return labels.map((label) => ({
    label: typeof label === 'number' ? `${key} = ${label}` : String(label),
    points: rows.filter(({ what }) => what[key] === label).map(point),
  }));
}

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
