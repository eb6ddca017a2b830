/** Reads the record of a result. Folders may come from strangers, so everything in it is checked. */
import { z } from 'zod';
import { isPlainPath } from '../checkpoint/plain-path.js';
import { listOf } from '../list-of.js';
import { CURVE_POINTS } from '../methods/loss-curve.js';
import { PROJECTIONS } from '../models/family.js';
import type { StoredReport } from './run-report.js';

/** The schema of a loss curve's points. */
export const lossCurve = z
  .array(z.tuple([z.int().positive(), z.number()]).readonly())
  .max(CURVE_POINTS)
  .readonly();

const range = z.tuple([z.number(), z.number()]).readonly();
/** The schema of a `MetricReport`. */
export const metricReport = z.object({
  relativeError: z.number(),
  tokens: range,
  shrinkage: range,
  unreached: z.array(z.int().nonnegative()).readonly().optional(),
});

const group = z.looseObject({
  layer: z.int().nonnegative(),
  projection: z.enum(PROJECTIONS),
  group: z.int().nonnegative(),
  groups: z.int().positive(),
  seconds: z.number(),
  relativeError: z.number().optional(),
  keptError: z.number().nullish(),
  repairedError: z.number().optional(),
  dropped: z.literal(true).optional(),
  mse: z.number().optional(),
  sigma: z.number().optional(),
  steps: z.number().optional(),
  losses: lossCurve.optional(),
  metric: metricReport.optional(),
});

/** The schema of a `GroupReport`. A report with an error must have all other figures of a fit. */
export const groupReport = group.refine(
  ({ relativeError, mse, sigma, steps }) =>
    relativeError === undefined || [mse, sigma, steps].every((it) => it !== undefined),
);

const reportSchema = z.looseObject({
  version: z.literal(1),
  kind: z.enum(['compress', 'export', 'expand', 'fit', 'repair']),
  sourceFingerprint: z.string(),
  settings: z.record(z.string(), z.unknown()),
  files: listOf(z.string().refine(isPlainPath)),
  groups: listOf(groupReport),
  engine: z.looseObject({ name: z.string(), device: z.string() }).optional(),
  parametersBefore: z.number(),
  parametersAfter: z.number(),
  bytesBefore: z.number(),
  bytesAfter: z.number(),
  peakRssBytes: z.number(),
  seconds: z.number(),
});

/** Checks a record. Throws a `ZodError` if it is not the record of a result. */
export function parseReport(record: unknown): StoredReport {
  reportSchema.parse(record);
  return record as StoredReport;
}
