/** Decides how many bases and which dtypes each layer and projection gets within a budget of bytes. */
import { OptionError } from '../errors.js';
import { formatBytes } from '../format.js';
import { type StoredDtypes, storedFactors, partsOf as tensorsOf } from '../methods/factor-storage.js';
import type { Projection } from '../models/family.js';
import { type AllocationInput, choiceSizes, errorAt, type Part } from './allocate.js';
import { type GroupPlan, projectionKey } from './group-plan.js';
import { type SizeChoice, type Spread, spreadBases, usefulChoices } from './spread-bases.js';

/** A number of bases and dtypes that a projection may have. */
export interface BytesChoice extends SizeChoice {
  /** The dtypes of its factors; undefined if it stays dense. */
  readonly stored?: StoredDtypes | undefined;
}

/** A projection with the bytes of its dense weights as they would be written. */
export interface BytesPart extends Part, Pick<GroupPlan, 'dtype'> {
  readonly denseBytes: number;
}

/** How much an error rises if factors are stored in dtypes: relative squared errors, to be added to that of exact factors. */
export type StorageError = (stored: StoredDtypes, exact: number) => number;

/** The facts that decide an allocation of bytes. */
export interface BytesAllocationInput extends Pick<AllocationInput, 'sensitivities' | 'remaining' | 'curves'> {
  readonly parts: readonly BytesPart[];
  /** The dtypes to choose from. */
  readonly dtypes: readonly StoredDtypes[];
  readonly storageError: StorageError;
  /** The most bytes of all parts together. */
  readonly bytes: number;
  /** The option that gave the bytes, for errors. */
  readonly option: string;
}

/** A projection's share of an allocation of bytes. */
export interface AllocatedBytes {
  readonly layer: number;
  readonly projection: Projection;
  readonly bases: number | 'dense';
  readonly stored?: StoredDtypes | undefined;
  readonly bytes: number;
  /** The loss that is predicted if only this projection is compressed. */
  readonly predicted: number;
}

export interface BytesAllocation {
  readonly projections: readonly AllocatedBytes[];
  readonly bytes: number;
  readonly predicted: number;
  /** Bytes and predicted losses from the smallest choices on. */
  readonly path: Spread['path'];
}

/**
 * Each projection may have any number of bases that `allocate` allows, in any of the dtypes. Of all these, bytes go where they lower
 * the predicted loss most. Throws `OptionError` if the smallest choices take more bytes than the budget.
 */
export function allocateBytes(input: BytesAllocationInput): BytesAllocation {
  const { parts, bytes: budget, option } = input;
  const projections = parts.map((part) => ({
    layer: part.layer,
    projection: part.projection,
    choices: usefulChoices(choicesOf(part, input)),
  }));
  const least = projections.reduce((sum, { choices }) => sum + (choices[0] as BytesChoice).size, 0);
  if (least > budget)
    throw new OptionError(
      option,
      `the smallest sizes of an allocation take ${formatBytes(least)}, and it leaves ${formatBytes(budget)} for them. Use a larger ${option}, or dtypes of fewer bits.`,
    );
  const { chosen, size, loss, path } = spreadBases<BytesChoice>(projections, { size: budget });
  return {
    projections: chosen.map(({ bases, stored, size: bytes, loss: predicted }, i) => {
      const { layer, projection } = projections[i] as (typeof projections)[0];
      return { layer, projection, bases, ...(stored && { stored }), bytes, predicted };
    }),
    bytes: size,
    predicted: loss,
    path,
  };
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
    input.dtypes.map((stored): BytesChoice => {
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
