/** An allocation of bases as text. */
import { type AllocatedProjection, type Allocation, averageBits } from '../conversion/allocation.js';
import { limitsBytes } from '../conversion/allocation-options.js';
import type { TimedPlan } from '../conversion/estimate.js';
import { formatBytes, formatPercent, formatSeconds } from '../format.js';
import { shortDtypes } from '../methods/factor-storage.js';
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
        `is decided after ${probes.fits} short fits of ${probes.steps} steps, about ${formatSeconds(probes.estimatedSeconds)}, ${formatBytes(probes.diskBytes)} on disk ${probes.kept ? 'in the record, which keeps them for other sizes' : 'until the result is whole'}; ${limitsBytes(settings) ? 'this plan spreads the bytes as if all projections were alike' : 'this plan has the same number of bases everywhere'}`,
      ],
    ];
  if (!allocation) return [];
  const bases = allocation.projections.flatMap((it) => (it.bases === 'dense' ? [] : [it.bases]));
  const dense = allocation.projections.length - bases.length;
  const kept = dense ? `, ${dense} projection(s) stay dense` : '';
  const predicted =
    allocation.predicted === undefined ? '' : `; predicted loss ${describeLoss(allocation.predicted, allocation)}`;
  return [
    ['allocation', `${Math.min(...bases)} to ${Math.max(...bases)} bases, see below${kept}${predicted}`],
    ...bytesRows(allocation),
  ];
}

/** The bytes of an allocation of bytes. */
function bytesRows(allocation: Allocation): string[][] {
  const bits = averageBits(allocation);
  if (bits === undefined) return [];
  return [
    [
      'experts',
      `${formatBytes(allocation.bytes as number)} of factors and dense experts, ${bits.toFixed(3)} bits a weight`,
    ],
  ];
}

const describeLoss = (loss: number, { measure }: Allocation): string => `${loss.toPrecision(3)} (${MEASURES[measure]})`;

/** The bases of each layer and projection, with the share of the predicted loss that each has; dtypes and bytes, if these were allocated. */
export function allocationTable({ projections }: Allocation): string {
  const held = PROJECTIONS.filter((it) => projections.some(({ projection }) => projection === it));
  const total = projections.reduce((sum, { predicted = 0 }) => sum + predicted, 0);
  const layers = [...new Set(projections.map(({ layer }) => layer))].sort((a, b) => a - b);
  const inBytes = projections.some(({ bytes }) => bytes !== undefined);
  const cells = (own: AllocatedProjection | undefined): string[] => [
    own === undefined ? '' : String(own.bases),
    ...(inBytes
      ? [own?.stored ? shortDtypes(own.stored) : '', own?.bytes === undefined ? '' : formatBytes(own.bytes)]
      : []),
    own?.predicted === undefined || !(total > 0) ? '' : formatPercent(own.predicted / total),
  ];
  return formatTable(
    [
      right('layer'),
      ...held.flatMap((it) => [right(it), ...(inBytes ? [right('dtype'), right('bytes')] : []), right('of loss')]),
    ],
    layers.map((layer) => [
      String(layer),
      ...held.flatMap((name) => cells(projections.find((it) => it.layer === layer && it.projection === name))),
    ]),
  );
}

/** The rows of a printed curve. */
const CURVE_ROWS = 20;

/** The predicted loss by size. */
export function curveTable(allocation: Allocation): string {
  const { curve = [], measure } = allocation;
  const inBytes = averageBits(allocation) !== undefined;
  const spacing = Math.max(1, (curve.length - 1) / (CURVE_ROWS - 1));
  const places = new Set(Array.from({ length: CURVE_ROWS }, (_, i) => Math.round(i * spacing)));
  const rows = curve.filter((_, i) => places.has(i));
  return formatTable(
    [right(inBytes ? 'bits a weight' : "of the experts' parameters"), right(`predicted loss: ${MEASURES[measure]}`)],
    rows.map(([size, loss]) => [
      inBytes ? size.toFixed(3) : formatPercent(size),
      loss === 0 ? '0' : loss.toPrecision(3),
    ]),
  );
}
