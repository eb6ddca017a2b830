/** Which experts are factorised together, and how large their factors are. */
import type { FloatDtype } from '../checkpoint/dtype.js';
import { floatTensor, type TensorSpec } from '../checkpoint/header.js';
import { type MatrixFormat, matrixBytes, type StoredMatrix } from '../checkpoint/stored-matrix.js';
import type { ProductShape } from '../engine/gemm-rate.js';
import { OptionError } from '../errors.js';
import type { FactorShape, GroupNames, GroupShape, Method, MethodProblem } from '../methods/method.js';
import { DEFAULT_METHOD, METHODS } from '../methods/registry.js';
import { type ExpertLayer, type MoeModel, PROJECTIONS, type Projection } from '../models/family.js';
import type { GroupNumber } from '../models/native.js';
import { factorisedFormat, turnedSize } from './orientation.js';
import { decodedDtype, isNative, type Settings } from './settings.js';

/** The experts of one layer and projection, or one of the parts they are cut into. */
export interface GroupPlan extends GroupNumber {
  readonly layer: number;
  readonly projection: Projection;
  readonly method: Method;
  /** One of `method`. rows × cols are those of the matrices that are factorised: of the transpose, where `format` says so. */
  readonly problem: GroupShape;
  /** The dense weights, in expert order. */
  readonly experts: readonly StoredMatrix[];
  /** Of every one of them. */
  readonly format: MatrixFormat;
  /** Of what is written. */
  readonly dtype: FloatDtype;
  /** The tensors of a native checkpoint that hold its factors; none where the method has no native form. */
  readonly names: GroupNames;
}

/** What identifies a group within a model. */
export type GroupKey = Pick<GroupPlan, 'layer' | 'projection' | 'group' | 'groups'>;

export const groupKey = ({ layer, projection, group, groups }: GroupKey): GroupKey => ({
  layer,
  projection,
  group,
  groups,
});

export const groupLabel = ({ layer, projection, group, groups }: GroupKey): string =>
  `layer ${layer} ${projection}${groups === 1 ? '' : ` group ${group}`}`;

/** In the order of layers, projections, and parts. */
export const compareGroups = (a: Omit<GroupKey, 'groups'>, b: Omit<GroupKey, 'groups'>): number =>
  a.layer - b.layer || PROJECTIONS.indexOf(a.projection) - PROJECTIONS.indexOf(b.projection) || a.group - b.group;

/** Bytes of a group's dense weights, as stored. */
export const sourceBytes = ({ experts, format }: Pick<GroupPlan, 'experts' | 'format'>): number =>
  experts.length * matrixBytes(format);

/** The layers to convert. Throws `OptionError` for one that has no experts. */
export function selectLayers({ layers }: MoeModel, wanted: readonly number[] | undefined): ExpertLayer[] {
  if (!wanted) return [...layers];
  const known = new Set(layers.map(({ layer }) => layer));
  const unknown = wanted.filter((layer) => !known.has(layer));
  if (unknown.length) {
    throw new OptionError(
      '--layers',
      `layer ${unknown.join(', ')} has no routed experts; those that have: ${formatRanges([...known])}`,
    );
  }
  return layers.filter(({ layer }) => wanted.includes(layer));
}

/** Groups in the order in which their experts lie in the shards, so that each is complete early. */
export function planGroups(model: MoeModel, settings: Settings): GroupPlan[] {
  const layers = selectLayers(model, settings.layers);
  const method = METHODS[settings.method] as Method;
  if (isNative(settings)) checkNative(model, method, settings);
  const projections = layers.flatMap((layer) =>
    PROJECTIONS.map((projection) => ({
      layer,
      projection,
      ...shapeOf(layer, projection),
      factorised: settings.projections.includes(projection),
      example: layer.experts[projection][0] as StoredMatrix,
    })),
  );
  const problems = method.plan(projections, settings);
  const groups = projections
    .filter(({ factorised }) => factorised)
    .flatMap(({ layer, projection }, i) => cut(layer, projection, method, problems[i] as GroupShape, settings));
  const firstByte = ({ experts: [first] }: GroupPlan): string =>
    `${first?.data.file}:${String(first?.data.start).padStart(16, '0')}`;
  const order = new Map(groups.map((group) => [group, firstByte(group)] as const));
  return groups.sort((a, b) => ((order.get(a) as string) < (order.get(b) as string) ? -1 : 1));
}

/** Throws `OptionError` where the output cannot be a native checkpoint. */
export function checkNative(
  { family }: MoeModel,
  method: Method,
  { keepQuantized, maxError }: Partial<Pick<Settings, 'keepQuantized' | 'maxError'>> = {},
): void {
  if (!method.native)
    throw new OptionError('--format', `no native form is defined for --method ${method.name} yet. Use --format hf.`);
  if (!family.native)
    throw new OptionError('--format', `no native form is defined for ${family.name}. Use --format hf.`);
  if (keepQuantized)
    throw new OptionError(
      '--keep-quantized',
      'the modelling files of native checkpoints hold plain weights. Use --format hf, or leave it out.',
    );
  if (maxError !== undefined)
    throw new OptionError(
      '--max-error',
      'the header of a native checkpoint says which layers are compressed, and is written before the errors are known. Use --format hf; or "mobe fit" and then "mobe export --max-error", which leaves out the layers that fit worse.',
    );
}

/** All experts of a projection, as they are factorised. */
function shapeOf({ experts }: ExpertLayer, projection: Projection): GroupShape {
  const matrices = experts[projection];
  return { experts: matrices.length, ...turnedSize(projection, matrices[0] as StoredMatrix) };
}

/**
 * The group of a model that was factorised so, whatever options would choose it; undefined where the model has none of its shape.
 * @param known the method and the problem; where it does not matter what they are, the default method and a dense shape
 */
export function groupOf(
  model: MoeModel,
  { layer: number, projection, group, groups }: GroupKey,
  settings: Pick<Settings, 'dtype'>,
  known?: MethodProblem,
): GroupPlan | undefined {
  const layer = model.layers.find((it) => it.layer === number);
  if (!layer) return undefined;
  const { experts, rows, cols } = shapeOf(layer, projection);
  const shape = { experts: experts / groups, rows, cols };
  const { method, problem } = known ?? { method: DEFAULT_METHOD, problem: shape };
  const fits = problem.experts * groups === experts && problem.rows === rows && problem.cols === cols;
  if (!fits || !Number.isInteger(shape.experts)) return undefined;
  return cut(layer, projection, method, problem, settings)[group];
}

/** The groups of one layer and projection: its experts cut in order into parts of the problem's size. */
function cut(
  { layer, prefix, experts }: ExpertLayer,
  projection: Projection,
  method: Method,
  problem: GroupShape,
  settings: Pick<Settings, 'dtype'>,
): GroupPlan[] {
  const all = experts[projection];
  const stored = all[0] as StoredMatrix;
  const { encoding } = stored;
  const size = problem.experts;
  const groups = all.length / size;
  return Array.from({ length: groups }, (_, group) => ({
    layer,
    projection,
    group,
    groups,
    method,
    problem,
    experts: all.slice(group * size, (group + 1) * size),
    format: factorisedFormat(projection, stored),
    dtype: encoding.kind === 'float' && !settings.dtype ? encoding.dtype : decodedDtype(settings),
    names: method.native?.names({ prefix, projection, group, groups }, size) ?? NO_NAMES,
  }));
}

const NO_NAMES: GroupNames = { shared: {}, experts: [] };

/** The tensors a group is stored as in a native checkpoint: the factors that its experts share, and those of each. */
export function nativeTensors({ method, problem, dtype, names }: GroupPlan): {
  readonly shared: readonly TensorSpec[];
  readonly experts: ReadonlyArray<readonly TensorSpec[]>;
} {
  const { shared, byExpert } = method.stores(problem);
  const specs = (factors: readonly FactorShape[], own: Readonly<Record<string, string>>): TensorSpec[] =>
    factors.map(({ name, shape }) => floatTensor(own[name] as string, dtype, ...shape));
  return { shared: specs(shared, names.shared), experts: names.experts.map((own) => specs(byExpert, own)) };
}

/** The matrix product that engines are measured by for a group. */
export const productOf = (group: MethodProblem | undefined): ProductShape | undefined =>
  group?.method.product(group.problem);

/** [0,1,2,5] → "0-2, 5" */
export function formatRanges(numbers: readonly number[]): string {
  const ranges: Array<[number, number]> = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last && number <= last[1] + 1) last[1] = number;
    else ranges.push([number, number]);
  }
  return ranges.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(', ');
}
