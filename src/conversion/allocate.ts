/** Decides how many bases each layer and projection gets, from the errors of short fits and from sensitivities. */
import { OptionError } from '../errors.js';
import { formatPercent } from '../format.js';
import { denseParameters, groupParameters } from '../methods/parameters.js';
import type { Projection } from '../models/family.js';
import { type Allocation, CURVE_POINTS } from './allocation.js';
import { compareGroups, type GroupPlan, projectionKey } from './group-plan.js';
import { type SizeChoice, type Spread, type SpreadProjection, samplePath, spreadBases } from './spread-bases.js';

/** A projection of a layer as it would be with the same number of bases everywhere: its first group stands for all. */
export type Part = Pick<GroupPlan, 'layer' | 'projection' | 'groups' | 'method' | 'problem'>;

/** One part for each projection and layer, in order. */
export const partsOf = (groups: readonly GroupPlan[]): GroupPlan[] =>
  groups.filter(({ group }) => group === 0).sort(compareGroups);

/** The number of bases of all groups of a part. Throws `OptionError` if its method has none. */
export function basesOf({ method, problem, groups }: Part): number {
  if (!method.bases) throw new OptionError('--allocate', `--method ${method.name} has no bases to allocate`);
  return groups * method.bases.of(problem);
}

const parametersOf = ({ method, problem, groups }: Part, bases: number): number =>
  groups * groupParameters({ method, problem: method.bases?.change(problem, bases / groups) ?? problem });

const denseOf = ({ problem, groups }: Part): number => groups * denseParameters(problem);

/** The most bases with which a projection is smaller than dense. */
function mostBases(part: Part): number {
  let bases = basesOf(part);
  while (parametersOf(part, bases + part.groups) < denseOf(part)) bases += part.groups;
  return bases;
}

/** An allocation leaves a projection at least this share of the bases that it would have if all had the same. */
const LEAST_SHARE = 1 / 4;

/** The fewest bases that a projection gets. */
const leastBases = (part: Part): number =>
  part.groups * Math.max(1, Math.round((LEAST_SHARE * basesOf(part)) / part.groups));

/**
 * The numbers of bases at which one layer is fitted to find how the error falls with bases: from the fewest to the most that an
 * allocation chooses, with the number that all layers are fitted at.
 */
export const curveBases = (part: Part): { readonly least: number; readonly usual: number; readonly most: number } => ({
  least: leastBases(part),
  usual: basesOf(part),
  most: mostBases(part),
});

/** The numbers of bases that an allocation may give a projection, and the number that all would have alike. */
export function choiceSizes(part: Part): { readonly usual: number; readonly numbers: readonly number[] } {
  const { least, usual, most } = curveBases(part);
  const numbers: number[] = [];
  for (let bases = least; bases <= most; bases += part.groups) numbers.push(bases);
  return { usual, numbers };
}

/** The layer whose fits show how the error falls: the middle one of those with the most projections. */
export function curveLayer(parts: readonly Part[]): number {
  const counts = new Map<number, number>();
  for (const { layer } of parts) counts.set(layer, (counts.get(layer) ?? 0) + 1);
  const most = Math.max(...counts.values());
  const layers = [...counts].filter(([, count]) => count === most).map(([layer]) => layer);
  return layers.sort((a, b) => a - b)[Math.floor(layers.length / 2)] as number;
}

/** Squared errors of one projection at several numbers of bases, which rise. */
export type ErrorCurve = ReadonlyArray<readonly [bases: number, error: number]>;

/** The error at a number of bases: the logarithm is interpolated, and continued beyond the ends. */
export function errorAt(curve: ErrorCurve, bases: number): number {
  if (curve.length === 1) return curve[0]?.[1] as number;
  const after = curve.findIndex(([at]) => at >= bases);
  const end = Math.max(1, after < 0 ? curve.length - 1 : after);
  const [a, b] = [curve[end - 1], curve[end]] as [ErrorCurve[number], ErrorCurve[number]];
  const share = (bases - a[0]) / (b[0] - a[0]);
  return Math.exp(Math.log(a[1]) + share * (Math.log(b[1]) - Math.log(a[1])));
}

/** What an allocation is decided from. */
export interface AllocationInput {
  readonly parts: readonly Part[];
  readonly measure: Allocation['measure'];
  /** The loss if only this projection is compressed, at the bases of its part; by `projectionKey`. */
  readonly sensitivities: ReadonlyMap<string, number>;
  /** The share of the probe's error that the whole fit is expected to leave; by `projectionKey`. */
  readonly remaining: ReadonlyMap<string, number>;
  /** How the error of a projection falls with bases. */
  readonly curves: ReadonlyMap<Projection, ErrorCurve>;
  /** The parameters of all routed experts of these layers, and of those of them that stay dense in any case. */
  readonly expertParameters: number;
  readonly denseParameters: number;
  /** The share of `expertParameters` to keep; undefined: the parameters that the parts have. */
  readonly keep?: number | undefined;
  /** Instead of a size: the predicted loss. */
  readonly maxLoss?: number | undefined;
}

/** Decides an allocation. Throws `OptionError` if the smallest sizes keep more than is wanted. */
export function allocate(input: AllocationInput): Allocation {
  const { parts, measure, sensitivities, expertParameters, denseParameters: fixed, keep, maxLoss } = input;
  const projections = parts.map((part) => choicesOf(part, input));
  const wanted =
    keep === undefined
      ? parts.reduce((sum, part) => sum + parametersOf(part, basesOf(part)), 0)
      : keep * expertParameters - fixed;
  const limits = maxLoss === undefined ? { size: wanted } : { loss: maxLoss };
  const { chosen, path } = spreadBases(projections, limits);
  const { path: whole } = spreadBases(projections, {});
  const share = (parameters: number): number => (fixed + parameters) / expertParameters;
  checkSpread(chosen, path, share, input);
  return {
    measure,
    projections: parts.map(({ layer, projection, ...part }, i) => {
      const { bases, loss } = chosen[i] as SizeChoice;
      return {
        layer,
        projection,
        bases,
        sensitivity: sensitivities.get(projectionKey({ layer, projection })) as number,
        probeBases: basesOf({ layer, projection, ...part }),
        predicted: loss,
      };
    }),
    predicted: path.at(-1)?.[1] as number,
    curve: samplePath(whole, CURVE_POINTS).map(([parameters, loss]) => [share(parameters), loss]),
  };
}

function checkSpread(
  chosen: readonly SizeChoice[],
  path: Spread['path'],
  share: (parameters: number) => number,
  { parts, keep, maxLoss }: AllocationInput,
): void {
  const least = share(path[0]?.[0] as number);
  if (maxLoss === undefined && keep !== undefined && least > keep)
    throw new OptionError(
      '--keep',
      `the fewest bases of an allocation keep ${formatPercent(least)} of the experts' parameters. Use --keep ${Math.ceil(1000 * least) / 1000}, or --allocate uniform.`,
    );
  if (chosen.some(({ bases }) => bases !== 'dense')) return;
  const [part] = parts as [Part];
  throw new OptionError(
    maxLoss === undefined ? '--keep' : '--max-loss',
    `it leaves all experts of the ${parts.length} projections uncompressed (those of layer ${part.layer} ${part.projection}, …)`,
  );
}

function choicesOf(part: Part, { sensitivities, remaining, curves }: AllocationInput): SpreadProjection {
  const { layer, projection } = part;
  const sensitivity = sensitivities.get(projectionKey(part));
  const curve = curves.get(projection);
  if (sensitivity === undefined || !curve)
    throw new RangeError(`${projectionKey(part)} has no sensitivity or no curve`);
  const { usual, numbers } = choiceSizes(part);
  const unit = (sensitivity * (remaining.get(projectionKey(part)) ?? 1)) / errorAt(curve, usual);
  const choices = numbers.map(
    (bases): SizeChoice => ({ bases, size: parametersOf(part, bases), loss: unit * errorAt(curve, bases) }),
  );
  return { layer, projection, choices: [...choices, { bases: 'dense', size: denseOf(part), loss: 0 }] };
}
