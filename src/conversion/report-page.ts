/** Renders the record of a conversion, and its scores if there are any, as one HTML page. */
import { formatBytes, formatCount, formatPercent, formatSeconds } from '../format.js';
import { type AxisStyle, lines, type Point, type Series } from '../page/charts.js';
import { htmlPage, paragraphs, type Section, table } from '../page/page.js';
import { markup } from '../page/svg.js';
import { allocationSections } from './allocation-sections.js';
import { groupLabel } from './group-plan.js';
import { type FittedGroupReport, fitWarnings, isFitted, type StoredReport } from './run-report.js';

/** The score of a model: of the result, and of the source if the two were compared. */
export interface PageScore {
  readonly model: string;
  readonly nll: number;
  readonly nllPerByte: number;
  readonly perplexity: number;
  readonly comparison?: { readonly divergence: number; readonly agreement: number };
}

/** The most lines in a plot that can be told apart. With more groups, the plot shows highest, median and lowest. */
const MOST_LINES = 8;

/**
 * The page of a conversion, as HTML.
 * @param name the name of the result on the page
 */
export function conversionPage(name: string, report: StoredReport, scores: readonly PageScore[] = []): string {
  const { groups, settings } = report;
  const fitted = groups.filter(isFitted);
  const warnings = fitWarnings(groups);
  const sections: Section[] = [
    { title: 'In short', body: figures(report, fitted, scores) },
    ...(warnings.length ? [{ title: 'To be known', body: told(warnings) }] : []),
    ...(scores.length ? [{ title: 'Scores', body: scoreTable(scores) }] : []),
    ...allocationSections(settings, scores.at(-1)?.comparison?.divergence),
    ...(fitted.length ? fitSections(fitted) : []),
    {
      title: 'Settings',
      body: table(
        ['setting', 'value'],
        Object.entries(settings)
          .filter(([setting]) => setting !== 'allocation')
          .map(([setting, value]) => [setting, JSON.stringify(value) ?? '']),
      ),
    },
  ];
  return htmlPage(`${name}: what mobe ${report.kind} did`, [madeBy(report)], sections);
}

function madeBy({ engine, sourceFingerprint }: StoredReport): string {
  const arithmetic = engine ? `Arithmetic by ${engine.name} on ${engine.device}. ` : '';
  return `${arithmetic}Source: fingerprint ${sourceFingerprint.slice(0, 16)}.`;
}

function figures(report: StoredReport, fitted: readonly FittedGroupReport[], scores: readonly PageScore[]): string {
  const { parametersBefore, parametersAfter, bytesBefore, bytesAfter, seconds, peakRssBytes } = report;
  const errors = fitted.map(({ relativeError }) => relativeError);
  const [before, after] = [scores.at(-2), scores.at(-1)];
  const shown: Array<[title: string, value: string, note: string]> = [
    [
      'parameters',
      formatPercent(parametersAfter / parametersBefore),
      `${formatCount(parametersBefore)} → ${formatCount(parametersAfter)}`,
    ],
    [
      'tensor bytes',
      formatPercent(bytesAfter / bytesBefore),
      `${formatBytes(bytesBefore)} → ${formatBytes(bytesAfter)}`,
    ],
    ...(errors.length
      ? [
          [
            'relative error, mean',
            mean(errors).toFixed(4),
            `${Math.min(...errors).toFixed(4)} to ${Math.max(...errors).toFixed(4)}`,
          ] satisfies [string, string, string],
        ]
      : []),
    ...(after
      ? [
          [
            'nll, nats a token',
            after.nll.toFixed(4),
            before ? `${before.nll.toFixed(4)} of the source` : `perplexity ${after.perplexity.toFixed(3)}`,
          ] satisfies [string, string, string],
        ]
      : []),
    ['time', formatSeconds(seconds), `${formatBytes(peakRssBytes)} peak memory`],
  ];
  const boxes = shown.map(
    ([title, value, note]) =>
      `<div><span>${markup(title)}</span><b>${markup(value)}</b><span>${markup(note)}</span></div>`,
  );
  return `<div class="figures">\n${boxes.join('\n')}\n</div>`;
}

const told = (warnings: readonly string[]): string => `<div class="told">\n${paragraphs(warnings)}\n</div>`;

function scoreTable(scores: readonly PageScore[]): string {
  const compared = scores.some(({ comparison }) => comparison);
  return table(
    ['model', 'nll a token', 'nll a byte', 'perplexity', ...(compared ? ['KL', 'same top-1'] : [])],
    scores.map((score) => [score.model, ...scoreCells(score, compared)]),
  );
}

/**
 * The cells of a score: nll a token, nll a byte, perplexity.
 * @param compared adds cells for KL and agreement, which are empty if this model was not compared
 */
export const scoreCells = (
  { nll, nllPerByte, perplexity, comparison }: Omit<PageScore, 'model'>,
  compared: boolean,
): string[] => [
  nll.toFixed(5),
  nllPerByte.toFixed(5),
  perplexity.toFixed(4),
  ...(compared ? [comparison?.divergence.toFixed(5) ?? '', comparison ? formatPercent(comparison.agreement) : ''] : []),
];

function fitSections(fitted: readonly FittedGroupReport[]): Section[] {
  const byLayer = (groups: readonly FittedGroupReport[], value: (group: FittedGroupReport) => number): Series[] =>
    projections(groups).map(([label, own]) => {
      const layers = [...new Set(own.map(({ layer }) => layer))];
      return {
        label,
        points: layers.map((x) => ({ x, y: mean(own.filter(({ layer }) => layer === x).map(value)) })),
      };
    });
  const x: AxisStyle = { title: 'layer', scale: 'linear' };
  const courses = lossCourses(fitted);
  // The time of factors from an earlier run is not known.
  const timed = fitted.filter(({ seconds }) => seconds > 0);
  return [
    {
      title: 'Relative error ‖W − Ŵ‖/‖W‖ by layer',
      body: lines({
        title: 'Relative error by layer',
        x,
        y: { title: 'relative error', scale: 'from zero' },
        series: byLayer(fitted, ({ relativeError }) => relativeError),
      }),
    },
    ...(courses.length
      ? [
          {
            title: 'How the loss fell',
            body: lines({
              title: 'Loss against steps',
              x: { title: 'steps', scale: 'logarithmic' },
              y: { title: 'loss, in units of σ²', scale: 'logarithmic' },
              series: courses,
            }),
          },
        ]
      : []),
    ...(timed.length
      ? [
          {
            title: 'Time by layer',
            body: lines({
              title: 'Time by layer',
              x,
              y: { title: 'seconds', scale: 'from zero' },
              series: byLayer(timed, ({ seconds }) => seconds),
            }),
          },
        ]
      : []),
    {
      title: 'All groups',
      body: table(
        ['group', 'relative error', 'mse', 'σ', 'steps', 'time'],
        fitted.map(({ relativeError, mse, sigma, steps, seconds, ...group }) => [
          groupLabel(group),
          relativeError.toFixed(4),
          mse.toExponential(2),
          sigma.toPrecision(3),
          String(steps || 'not known'),
          seconds > 0 ? formatSeconds(seconds) : 'not known',
        ]),
      ),
    },
  ];
}

/** One line for each group. With many groups: highest, median and lowest loss of each projection. */
function lossCourses(fitted: readonly FittedGroupReport[]): Series[] {
  const watched = fitted.filter(({ losses }) => losses?.some(([, loss]) => loss > 0));
  const points = ({ losses = [] }: FittedGroupReport): Point[] =>
    losses.filter(([, loss]) => loss > 0).map(([x, y]) => ({ x, y }));
  if (watched.length <= MOST_LINES)
    return watched.map((group) => ({ label: groupLabel(group), points: points(group) }));
  return projections(watched).flatMap(([projection, own]) => {
    const at = new Map<number, number[]>();
    for (const { x, y } of own.flatMap(points)) at.set(x, [...(at.get(x) ?? []), y]);
    // Only steps that all fits reached: a fit that ends earlier would make the line jump.
    const steps = [...at].filter(([, losses]) => losses.length === own.length);
    const ranked = steps.map(([x, losses]) => [x, losses.sort((a, b) => a - b)] as const);
    const course = (label: string, pick: (losses: readonly number[]) => number): Series => ({
      label: `${projection}, ${label}`,
      points: ranked.map(([x, losses]) => ({ x, y: pick(losses) })),
    });
    return [
      course('highest', (losses) => losses.at(-1) as number),
      course('median', (losses) => losses[losses.length >> 1] as number),
      course('lowest', (losses) => losses[0] as number),
    ];
  });
}

const projections = (groups: readonly FittedGroupReport[]): Array<[projection: string, own: FittedGroupReport[]]> =>
  [...new Set(groups.map(({ projection }) => projection))].map((projection) => [
    projection,
    groups.filter((group) => group.projection === projection),
  ]);

const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
