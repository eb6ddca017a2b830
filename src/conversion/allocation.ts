/** How many bases each layer and projection gets, and in which dtypes if bytes are allocated. */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { storedDtypesSchema } from '../methods/factor-storage.js';
import { PROJECTIONS } from '../models/family.js';

export const ALLOCATE_CHOICES = ['uniform', 'error', 'calibrated'] as const;
export const METRIC_CHOICES = ['none', 'low-rank', 'full'] as const;
export const REPAIR_CHOICES = ['none', 'factors', 'factors+down'] as const;
export const SENSITIVITY_CHOICES = ['local', 'kl'] as const;

/** The most points of a curve of losses. */
export const CURVE_POINTS = 64;

/** The bases of a layer's projection. */
const allocatedProjection = z.strictObject({
  layer: z.int().nonnegative(),
  projection: z.enum(PROJECTIONS),
  /** Of all its groups together; 'dense' if it is not factorised. */
  bases: z.union([z.int().positive(), z.literal('dense')]),
  /** The dtypes of its factors, if bytes are allocated; undefined: those of the settings. */
  stored: storedDtypesSchema.optional(),
  /** The bytes of its factors or dense weights, if bytes are allocated. */
  bytes: z.int().nonnegative().optional(),
  /** The loss if only this projection is compressed, at `probeBases` bases. */
  sensitivity: z.number().optional(),
  probeBases: z.int().positive().optional(),
  /** The share of the loss that is predicted for `bases`. */
  predicted: z.number().optional(),
});

/** The result of an allocation. It decides the sizes of all groups. */
export const allocationSchema = z.strictObject({
  /** What `predicted` and `sensitivity` measure: a relative squared error of weights, of a layer's output, or KL in nats. */
  measure: z.enum(['error', 'output', 'kl']),
  projections: z.array(allocatedProjection),
  /** The predicted loss of the whole. */
  predicted: z.number().optional(),
  /** The bytes of all routed experts of the converted layers, and the number of their weights, if bytes are allocated. */
  bytes: z.int().nonnegative().optional(),
  weights: z.int().positive().optional(),
  /** Predicted losses at other sizes: [share of the experts' parameters, loss], or if bytes are allocated [bits a weight, loss]. */
  curve: z
    .array(z.tuple([z.number(), z.number()]))
    .max(CURVE_POINTS)
    .optional(),
});
export type Allocation = Readonly<z.infer<typeof allocationSchema>>;
export type AllocatedProjection = Readonly<z.infer<typeof allocatedProjection>>;

/** The bits a weight that an allocation of bytes takes; undefined if parameters were allocated. */
export const averageBits = ({ bytes, weights }: Allocation): number | undefined =>
  bytes === undefined || weights === undefined ? undefined : (8 * bytes) / weights;

/** Settings that may be long: an allocation is as long as a model has layers, and a calibration has many texts. */
const LONG_SETTINGS = ['allocation', 'calibration', 'repaired'] as const;

/** Settings with hashes in place of those that may be long. Factor files have this form. */
export function shortSettings(settings: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const short = { ...settings };
  for (const key of LONG_SETTINGS) {
    const value = settings[key];
    if (typeof value !== 'object' || value === null) continue;
    short[key] = createHash('sha256').update(JSON.stringify(value)).digest('hex').slice(0, 16);
  }
  return short;
}

/** Settings with the long ones that their hashes are of, as far as another record of the run has them. */
export function longSettings(
  settings: Readonly<Record<string, unknown>>,
  recorded: Readonly<Record<string, unknown>> = {},
): Record<string, unknown> {
  const short = shortSettings(recorded);
  const known = LONG_SETTINGS.filter((key) => key in settings && short[key] === settings[key]);
  return { ...settings, ...Object.fromEntries(known.map((key) => [key, recorded[key]])) };
}
