/** The sections of a result's page about how its bases, or bytes, were allocated. */
import { formatBytes, formatPercent } from '../format.js';
import { shortDtypes } from '../methods/factor-storage.js';
import { PROJECTIONS } from '../models/family.js';
import { lines, type Series } from '../page/charts.js';
import { paragraphs, type Section, table } from '../page/page.js';
import { type AllocatedProjection, type Allocation, allocationSchema, averageBits } from './allocation.js';

/** What the numbers of an allocation measure, in words. */
const MEASURES: Record<Allocation['measure'], string> = {
  error: "relative squared error of the projection's weights",
  output: "relative squared error of the layer's output on the calibration text",
  kl: 'KL divergence on the calibration text, nats a token',
};

/**
 * Shows the bases of each layer and projection, the sensitivities from which they follow, and the predicted loss.
 * @param settings of the record; without an allocation there are no sections
 * @param measured the KL divergence of the result from its source on a text, if it was scored
 */
export function allocationSections(settings: Readonly<Record<string, unknown>>, measured?: number): Section[] {
  const { success, data: allocation } = allocationSchema.safeParse(settings.allocation);
  if (!success) return [];
  const { projections, measure, curve = [] } = allocation;
  const sensitive = sensitivities(projections);
  const inBytes = averageBits(allocation) !== undefined;
  return [
    {
      title: inBytes ? 'Bases and dtypes by layer' : 'Bases by layer',
      body: `${paragraphs(outcome(allocation, measured))}\n${basesTable(projections)}`,
    },
    ...(sensitive.length
      ? [
          {
            title: 'Loss if one projection alone is compressed',
            body: lines({
              title: 'Sensitivity by layer',
              x: { title: 'layer', scale: 'linear' },
              y: { title: measure === 'kl' ? 'KL, nats a token' : 'relative squared error', scale: 'logarithmic' },
              series: sensitive,
            }),
          },
        ]
      : []),
    ...(curve.length > 1
      ? [
          {
            title: 'Predicted loss against size',
            body: lines({
              title: 'Predicted loss against size',
              x: { title: inBytes ? 'bits a weight' : "share of the experts' parameters", scale: 'linear' },
              y: { title: 'predicted loss', scale: 'logarithmic' },
              series: [{ label: 'predicted', points: curve.map(([x, y]) => ({ x, y })) }],
            }),
          },
        ]
      : []),
  ];
}

function outcome(allocation: Allocation, measured: number | undefined): string[] {
  const { measure, predicted, bytes } = allocation;
  const bits = averageBits(allocation);
  const told = [`Losses below are the ${MEASURES[measure]}.`];
  if (predicted !== undefined) told.push(`The whole is predicted to lose ${predicted.toPrecision(3)}.`);
  if (bits !== undefined && bytes !== undefined)
    told.push(`The routed experts of these layers take ${formatBytes(bytes)}, ${bits.toFixed(3)} bits a weight.`);
  if (measured !== undefined) told.push(`KL measured on the text of the scores: ${measured.toPrecision(3)}.`);
  return told;
}

function basesTable(projections: readonly AllocatedProjection[]): string {
  const layers = [...new Set(projections.map(({ layer }) => layer))].sort((a, b) => a - b);
  const held = PROJECTIONS.filter((name) => projections.some(({ projection }) => projection === name));
  const total = projections.reduce((sum, { predicted = 0 }) => sum + predicted, 0);
  const inBytes = projections.some(({ bytes }) => bytes !== undefined);
  const cells = (layer: number): string[] =>
    held.flatMap((name) => {
      const own = projections.find((it) => it.layer === layer && it.projection === name);
      const share = own?.predicted === undefined || !(total > 0) ? '' : formatPercent(own.predicted / total);
      const size = own?.bytes === undefined ? '' : formatBytes(own.bytes);
      const stored = own?.stored ? shortDtypes(own.stored) : '';
      return [own ? String(own.bases) : '', ...(inBytes ? [stored, size] : []), share];
    });
  return table(
    ['layer', ...held.flatMap((name) => [name, ...(inBytes ? ['dtype', 'bytes'] : []), 'of the loss'])],
    layers.map((layer) => [String(layer), ...cells(layer)]),
  );
}

const sensitivities = (projections: readonly AllocatedProjection[]): Series[] =>
  PROJECTIONS.map((name) => ({
    label: name,
    points: projections
      .filter(({ projection }) => projection === name)
      .flatMap(({ layer, sensitivity = 0 }) => (sensitivity > 0 ? [{ x: layer, y: sensitivity }] : [])),
  })).filter(({ points }) => points.length > 0);
