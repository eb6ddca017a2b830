/** Decides how many bases and which dtypes each layer and projection gets within a budget of bytes. */
import { OptionError } from '../errors.js';
import { formatBytes } from '../format.js';
import { type StoredDtypes, storedFactors, partsOf as tensorsOf } from '../methods/factor-storage.js';
import { type AllocationInput, choiceSizes, errorAt } from './allocate.js';
import { type Allocation, CURVE_POINTS } from './allocation.js';
import type { BytesLimit, BytesPart, ExpertBytes } from './expert-bytes.js';
import { projectionKey } from './group-plan.js';
import { type SizeChoice, samplePath, spreadBases, usefulChoices } from './spread-bases.js';

/** A number of bases and dtypes that a projection may have. */
export interface BytesChoice extends SizeChoice {
  /** The dtypes of its factors; undefined if it stays dense. */
  readonly stored?: StoredDtypes | undefined;
}

/** How much an error rises if factors are stored in dtypes: relative squared errors, to be added to that of exact factors. */
export type StorageError = (stored: StoredDtypes, exact: number) => number;

/** The facts that decide an allocation of bytes. */
export interface BytesAllocationInput
  extends Pick<AllocationInput, 'measure' | 'sensitivities' | 'remaining' | 'curves'>,
    Pick<ExpertBytes, 'weights' | 'fixed'> {
  readonly parts: readonly BytesPart[];
  /** The dtypes to choose from. */
  readonly dtypesOf: (part: BytesPart) => readonly StoredDtypes[];
  readonly storageError: StorageError;
  readonly limit: BytesLimit;
}

/**
 * Each projection may have any number of bases that `allocate` allows, in any of the dtypes. Of all these, bytes go where they lower
 * the predicted loss most. Throws `OptionError` if the smallest choices take more bytes than the limit, or if nothing is compressed.
 */
export function allocateBytes(input: BytesAllocationInput): Allocation {
  const { parts, limit, fixed, weights, measure, sensitivities } = input;
  const projections = parts.map((part) => ({
    layer: part.layer,
    projection: part.projection,
    choices: usefulChoices(choicesOf(part, input)),
  }));
  const least = projections.reduce((sum, { choices }) => sum + (choices[0] as BytesChoice).size, fixed);
  if (least > limit.bytes) throw tooFewBytes(least, input);
  const { chosen, size, loss } = spreadBases<BytesChoice>(projections, { size: limit.bytes - fixed });
  if (chosen.every(({ bases }) => bases === 'dense'))
    throw new OptionError(limit.option, 'so many bytes leave all experts uncompressed. Use a smaller value');
  const { path } = spreadBases<BytesChoice>(projections, {});
  return {
    measure,
    projections: parts.map((part, i) => {
      const { bases, stored, size: bytes, loss: predicted } = chosen[i] as BytesChoice;
      const { layer, projection } = part;
      const sensitivity = sensitivities.get(projectionKey(part)) as number;
      const probeBases = choiceSizes(part).usual;
      return { layer, projection, bases, ...(stored && { stored }), bytes, sensitivity, probeBases, predicted };
    }),
    predicted: loss,
    bytes: fixed + size,
    weights,
    curve: samplePath(path, CURVE_POINTS).map(([bytes, predicted]) => [(8 * (fixed + bytes)) / weights, predicted]),
  };
}

/** Says what the smallest choices take, in the unit of the option. */
function tooFewBytes(least: number, { limit, fixed }: BytesAllocationInput): OptionError {
  const { option, bytes, unit } = limit;
  const value = Math.ceil((1e4 * least) / unit) / 1e4;
  const all = fixed > 0 ? ', or factorise all projections' : '';
  const dense = fixed > 0 ? `, ${formatBytes(fixed)} of them in projections that are not factorised` : '';
  const possible = option === '--average-bits' || value < 1;
  return new OptionError(
    option,
    `the smallest sizes of an allocation take ${formatBytes(least)} for the routed experts of the converted layers${dense}; it allows ${formatBytes(bytes)}. ${possible ? `Use ${option} ${value} or more${all}` : 'Factorise all projections, and leave out --dtype'}.`,
  );
}

/** The bytes of a projection's factors with so many bases in all its groups together. */
export function factorBytes(
  { method, problem, groups, dtype }: BytesPart,
  bases: number,
  stored: StoredDtypes,
): number {
  const changed = method.bases?.change(problem, bases / groups) ?? problem;
  const { shared, byExpert } = storedFactors({ method, problem: changed, dtype, stored });
  const bytesOf = (factors: typeof shared): number => tensorsOf(factors).reduce((sum, { bytes }) => sum + bytes, 0);
  return groups * (bytesOf(shared) + problem.experts * bytesOf(byExpert));
}

/** All choices of a projection. The loss is proportional to the error, and that at the usual size is what was measured. */
function choicesOf(part: BytesPart, input: BytesAllocationInput): BytesChoice[] {
  const key = projectionKey(part);
  const sensitivity = input.sensitivities.get(key);
  const curve = input.curves.get(part.projection);
  if (sensitivity === undefined || !curve) throw new RangeError(`${key} has no sensitivity or no curve`);
  const { usual, numbers } = choiceSizes(part);
  const probed = errorAt(curve, usual);
  // The error of the whole fit, of which `sensitivity` and `remaining` tell, may be another than that of the curve's layer.
  const unit = (sensitivity * (input.remaining.get(key) ?? 1)) / probed;
  const choices = numbers.flatMap((bases) =>
    input.dtypesOf(part).map((stored): BytesChoice => {
      const exact = errorAt(curve, bases);
      return {
        bases,
        stored,
        size: factorBytes(part, bases, stored),
        loss: unit * (exact + input.storageError(stored, exact)),
      };
    }),
  );
  return [...choices, { bases: 'dense', size: part.denseBytes, loss: 0 }];
}
