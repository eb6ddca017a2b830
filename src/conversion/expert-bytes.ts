/** Counts the bytes of routed experts, and how many of them an allocation of bytes may use. */
import { floatBytes } from '../checkpoint/dtype.js';
import { floatDtypeOf } from '../checkpoint/encoding.js';
import { matrixBytes, type StoredMatrix } from '../checkpoint/stored-matrix.js';
import { type MoeModel, PROJECTIONS } from '../models/family.js';
import type { Part } from './allocate.js';
import { type GroupPlan, projectionKey } from './group-plan.js';
import { decodedDtype, type Settings } from './settings.js';

/** A projection of a layer, with the bytes of its dense weights as they would be written. */
export interface BytesPart extends Part, Pick<GroupPlan, 'dtype'> {
  readonly denseBytes: number;
}

/** The most bytes of routed experts, as an option gives them. */
export interface BytesLimit {
  readonly option: '--average-bits' | '--keep-bytes';
  readonly bytes: number;
  /** The bytes of 1 in the option's value. */
  readonly unit: number;
}

/** The routed experts of the layers that are converted. */
export interface ExpertBytes {
  readonly weights: number;
  /** Their bytes in the source. */
  readonly source: number;
  /** The bytes of those that are factorised in no case, as they would be written. */
  readonly fixed: number;
  /** The projections that share the rest. */
  readonly parts: readonly BytesPart[];
}

/** Counts the bytes of routed experts. `settings` are those of the run. */
export function expertBytes(
  { layers }: Pick<MoeModel, 'layers'>,
  parts: ReadonlyArray<Part & Pick<GroupPlan, 'dtype'>>,
  settings: Pick<Settings, 'dtype' | 'keepQuantized'>,
): ExpertBytes {
  const byKey = new Map(parts.map((part) => [projectionKey(part), part]));
  const converted = new Set(parts.map(({ layer }) => layer));
  const shared: BytesPart[] = [];
  let [weights, source, fixed] = [0, 0, 0];
  for (const { layer, experts } of layers.filter((it) => converted.has(it.layer)))
    for (const projection of PROJECTIONS) {
      const matrices = experts[projection];
      weights += matrices.reduce((sum, { rows, cols }) => sum + rows * cols, 0);
      source += matrices.reduce((sum, matrix) => sum + matrixBytes(matrix), 0);
      const denseBytes = matrices.reduce((sum, matrix) => sum + bytesIfDense(matrix, settings), 0);
      const part = byKey.get(projectionKey({ layer, projection }));
      if (part) shared.push({ ...part, denseBytes });
      else fixed += denseBytes;
    }
  return { weights, source, fixed, parts: shared };
}

/**
 * The bytes of a dense matrix in a native checkpoint. Experts that stay quantised need tensors of their own, because a tensor of several
 * projections is decoded if one of them is factorised.
 */
function bytesIfDense(matrix: StoredMatrix, settings: Pick<Settings, 'dtype' | 'keepQuantized'>): number {
  const stays = settings.keepQuantized && matrix.place.tensor === matrix.name;
  if (stays || floatDtypeOf(matrix.encoding) !== undefined) return matrixBytes(matrix);
  return matrix.rows * matrix.cols * floatBytes(decodedDtype(settings));
}

/** The limit of bytes that the settings give; undefined if they give none. */
export function bytesLimit(
  { averageBits, keepBytes }: Pick<Settings, 'averageBits' | 'keepBytes'>,
  { weights, source }: Pick<ExpertBytes, 'weights' | 'source'>,
): BytesLimit | undefined {
  if (averageBits !== undefined) return limit('--average-bits', averageBits, weights / 8);
  return keepBytes === undefined ? undefined : limit('--keep-bytes', keepBytes, source);
}

/** A product like 0.3 · 10 can be a little less than what was meant. */
const ROUNDING = 1e-6;

const limit = (option: BytesLimit['option'], value: number, unit: number): BytesLimit => ({
  option,
  bytes: Math.floor(value * unit + ROUNDING),
  unit,
});
