/** Chooses the group of columns that share a scale. */
import { OptionError } from '../../errors.js';
import type { CompleteOptions, MethodOptions, ProjectionShape } from '../method.js';
import { type Problem, WIDTHS } from './problem.js';

const DEFAULT_WIDTH = 4;
/** The sizes of groups, the preferred one first. */
const SCALE_GROUPS = [128, 64] as const;

/** Fills in defaults. */
export const completeOptions = ({ width = DEFAULT_WIDTH, ...given }: MethodOptions): CompleteOptions => ({
  ...given,
  width,
  groups: 1,
  solver: 'rounding',
  steps: 1,
});

/** Plans the groups. Throws `OptionError` for experts that programs could not load. */
export function planSizes(projections: readonly ProjectionShape[], options: CompleteOptions): Problem[] {
  const left = projections.find(({ factorised }) => !factorised);
  if (left)
    throw new OptionError(
      '--projections',
      `programs that load packed experts need all of their projections packed, and ${left.example.name} would stay as it is. Leave --projections out`,
    );
  const scaleGroup = chooseScaleGroup(projections, options.scaleGroup);
  const width = WIDTHS.find((known) => known === options.width) ?? DEFAULT_WIDTH;
  return projections.map(({ experts, rows, cols }) => ({ experts, rows, cols, width, scaleGroup }));
}

/** A row is cut into whole groups: loaders refuse a shorter one at its end. */
function chooseScaleGroup(projections: readonly ProjectionShape[], wanted: number | undefined): number {
  const unevenIn = (size: number): ProjectionShape | undefined =>
    projections.find(({ example }) => example.cols % size !== 0);
  const found = (wanted === undefined ? SCALE_GROUPS : [wanted]).find((size) => !unevenIn(size));
  if (found !== undefined) return found;
  const size = wanted ?? (SCALE_GROUPS.at(-1) as number);
  const { name, cols } = (unevenIn(size) as ProjectionShape).example;
  const smaller = SCALE_GROUPS.find((it) => it < size && !unevenIn(it));
  const because = `rows must be whole groups of ${size} columns, and those of ${name} have ${cols}`;
  if (smaller !== undefined) throw new OptionError('--scale-group', `${because}. Use --scale-group ${smaller}`);
  throw new OptionError('--method', `quantise: ${because}. Use --method mobe with --dtype int4 or int8`);
}
