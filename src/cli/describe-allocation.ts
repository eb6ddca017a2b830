/** An allocation of bases as text. */
import type { AllocatedProjection, Allocation } from '../conversion/allocation.js';
import type { TimedPlan } from '../conversion/estimate.js';
import { formatBytes, formatPercent, formatSeconds } from '../format.js';
import { PROJECTIONS } from '../models/family.js';
import { formatTable, right } from './table.js';

/** What the predicted losses of an allocation are. */
const MEASURES: Record<Allocation['measure'], string> = {
  error: 'sum of relative squared errors',
  output: "sum of relative squared errors of layers' outputs",
  kl: 'KL, nats a token',
};

/** The rows of a plan about its allocation; none if it has none. */
export function allocationRows({ settings, probes }: TimedPlan): string[][] {
  const { allocation } = settings;
  if (probes && !probes.finished)
    return [
      [
        'allocation',
        `is decided after ${probes.fits} short fits of ${probes.steps} steps, about ${formatSeconds(probes.estimatedSeconds)}, ${formatBytes(probes.diskBytes)} on disk ${probes.kept ? 'in the record, which keeps them for other sizes' : 'until the result is whole'}; this plan has the same number of bases everywhere`,
      ],
    ];
  if (!allocation) return [];
  const bases = allocation.projections.flatMap((it) => (it.bases === 'dense' ? [] : [it.bases]));
  const dense = allocation.projections.length - bases.length;
  const kept = dense ? `, ${dense} projection(s) stay dense` : '';
  const predicted =
    allocation.predicted === undefined ? '' : `; predicted loss ${describeLoss(allocation.predicted, allocation)}`;
  return [['allocation', `${Math.min(...bases)} to ${Math.max(...bases)} bases, see below${kept}${predicted}`]];
}

const describeLoss = (loss: number, { measure }: Allocation): string => `${loss.toPrecision(3)} (${MEASURES[measure]})`;

/** The bases of each layer and projection, with the share of the predicted loss that each has. */
export function allocationTable({ projections }: Allocation): string {
  const held = PROJECTIONS.filter((it) => projections.some(({ projection }) => projection === it));
  const total = projections.reduce((sum, { predicted = 0 }) => sum + predicted, 0);
  const layers = [...new Set(projections.map(({ layer }) => layer))].sort((a, b) => a - b);
  const cells = (own: AllocatedProjection | undefined): string[] => [
    own === undefined ? '' : String(own.bases),
    own?.predicted === undefined || !(total > 0) ? '' : formatPercent(own.predicted / total),
  ];
  return formatTable(
    [right('layer'), ...held.flatMap((it) => [right(it), right('of loss')])],
    layers.map((layer) => [
      String(layer),
      ...held.flatMap((name) => cells(projections.find((it) => it.layer === layer && it.projection === name))),
    ]),
  );
}

/** The rows of a printed curve. */
const CURVE_ROWS = 20;

/** The predicted loss by size. */
export function curveTable({ curve = [], measure }: Allocation): string {
  const spacing = Math.max(1, (curve.length - 1) / (CURVE_ROWS - 1));
  const places = new Set(Array.from({ length: CURVE_ROWS }, (_, i) => Math.round(i * spacing)));
  const rows = curve.filter((_, i) => places.has(i));
  return formatTable(
    [right("of the experts' parameters"), right(`predicted loss: ${MEASURES[measure]}`)],
    rows.map(([share, loss]) => [formatPercent(share), loss === 0 ? '0' : loss.toPrecision(3)]),
  );
}
