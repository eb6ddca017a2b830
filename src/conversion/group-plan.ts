/** Plans which experts are factorised together, and the sizes of their factors. */
import { isDeepStrictEqual } from 'node:util';
import type { FloatDtype } from '../checkpoint/dtype.js';
import { describeEncoding, floatDtypeOf, type StoredEncoding } from '../checkpoint/encoding.js';
import { FLOAT_NAMES, isQuantisedName } from '../checkpoint/factor-dtype.js';
import type { TensorSpec } from '../checkpoint/header.js';
import { type MatrixShape, matrixBytes, type StoredMatrix } from '../checkpoint/stored-matrix.js';
import type { ProductShape } from '../engine/gemm-rate.js';
import { OptionError } from '../errors.js';
import {
  hasCodes,
  type NamedPart,
  partsOf,
  plainDtypes,
  type StoredDtypes,
  storedFactors,
} from '../methods/factor-storage.js';
import type { DefaultSizes, GroupNames, GroupShape, Method, MethodProblem } from '../methods/method.js';
import { DEFAULT_METHOD, methodNamed } from '../methods/registry.js';
import { type ExpertLayer, type MoeModel, PROJECTIONS, type Projection } from '../models/family.js';
import type { GroupNumber } from '../models/native.js';
import { factorisedShape, turnedSize } from './orientation.js';
import { decodedDtype, defaultProjections, isNative, type Settings, storedDtypes } from './settings.js';
import { type Slice, slicesOf } from './slices.js';
import type { SourceForm } from './source-form.js';

/** The experts of one layer and projection, or one of the parts into which `--groups` cuts them. */
export interface GroupPlan extends GroupNumber {
  readonly layer: number;
  /** The part of the experts' names before `experts.{e}`, e.g. `model.layers.3.mlp.` */
  readonly prefix: string;
  readonly projection: Projection;
  readonly method: Method;
  /** The problem that `method` solves. rows × cols is the shape of the factorised matrices: transposed, if `format` says so. */
  readonly problem: GroupShape;
  /** True if the output has weights of this group, even among groups of factors (`withDenseGroups`). */
  readonly dense?: boolean | undefined;
  /** The dense weights, in expert order. */
  readonly experts: readonly StoredMatrix[];
  /** The size of each expert as stored, and its orientation. Encodings may differ from expert to expert. */
  readonly format: MatrixShape;
  /** The slices of a fused tensor in which the experts lie, in expert order; undefined if each is a range of its own. */
  readonly slices?: readonly Slice[] | undefined;
  /** The dtype of rebuilt weights, and of factors that are never quantised. */
  readonly dtype: FloatDtype;
  /** The dtypes of the other factors; `dtype` if they are not quantised. */
  readonly stored: StoredDtypes;
  /** The encoding of written weights, if the method decides it. Each matrix then has tensors of its own (`packedTensors`). */
  readonly coded?: StoredEncoding | undefined;
  /** The forms of written weights, in expert order, if they are those of the source; undefined: they are floats of `dtype`. */
  readonly forms?: readonly SourceForm[] | undefined;
  /** The names of the factors in a native checkpoint; empty if the method has no native form. */
  readonly names: GroupNames;
}

/** The encoding in which an expert's weights are written. */
export const weightEncoding = (
  { coded, forms, dtype }: Pick<GroupPlan, 'coded' | 'forms' | 'dtype'>,
  expert: number,
): StoredEncoding => coded ?? forms?.[expert]?.encoding ?? { kind: 'float', dtype };

/** Identifies a group within a model. */
export type GroupKey = Pick<GroupPlan, 'layer' | 'projection' | 'group' | 'groups'>;

/** The key of a group, without its other fields. */
export const groupKey = ({ layer, projection, group, groups }: GroupKey): GroupKey => ({
  layer,
  projection,
  group,
  groups,
});

/** The name of a group in messages and records. */
export const groupLabel = ({ layer, projection, group, groups }: GroupKey): string =>
  `layer ${layer} ${projection}${groups === 1 ? '' : ` group ${group}`}`;

/** Names a layer and projection. Its groups have it in common. */
export const projectionKey = ({ layer, projection }: Pick<GroupKey, 'layer' | 'projection'>): string =>
  `${layer} ${projection}`;

/** The group of each expert's matrix, by the matrix's name. */
export const ownersOf = (groups: readonly GroupPlan[]): Map<string, GroupPlan> =>
  new Map(groups.flatMap((group) => group.experts.map(({ name }) => [name, group] as const)));

/** Orders groups by layer, projection and part. */
export const compareGroups = (a: Omit<GroupKey, 'groups'>, b: Omit<GroupKey, 'groups'>): number =>
  a.layer - b.layer || PROJECTIONS.indexOf(a.projection) - PROJECTIONS.indexOf(b.projection) || a.group - b.group;

/** Bytes of a group's dense weights as stored. */
export const sourceBytes = ({ experts }: Pick<GroupPlan, 'experts'>): number =>
  experts.reduce((sum, expert) => sum + matrixBytes(expert), 0);

/** The encodings of a group's experts, in words. */
export const describeEncodings = ({ experts }: Pick<GroupPlan, 'experts'>): string[] => [
  ...new Set(experts.map(({ encoding }) => describeEncoding(encoding))),
];

/** The layers to convert. Throws `OptionError` for a layer that has no routed experts. */
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

/** The projections that a layer's experts have. */
const projectionsOf = ({ experts }: ExpertLayer): Projection[] =>
  PROJECTIONS.filter((projection) => experts[projection].length > 0);

/** The wanted projections that there are. Throws `OptionError` if one is missing, unless it is only wanted by default. */
function selectProjections(layers: readonly ExpertLayer[], settings: Settings): readonly Projection[] {
  const wanted = settings.projections;
  const known = new Set(layers.flatMap(projectionsOf));
  const missing = wanted.filter((projection) => !known.has(projection));
  if (layers.length > 0 && missing.length > 0 && !isDeepStrictEqual(wanted, defaultProjections(settings)))
    throw new OptionError(
      '--projections',
      `the experts of this model have no ${missing.join(', ')}; they have ${[...known].join(', ')}`,
    );
  return wanted.filter((projection) => known.has(projection));
}

/**
 * Plans the groups, sorted by their place in the shards, so that each is read early. Throws `OptionError` if options do not fit
 * the model.
 */
export function planGroups(model: MoeModel, settings: Settings): GroupPlan[] {
  const method = methodNamed(settings.method);
  if (isNative(settings)) checkNative(model, method, settings);
  const projections = shapesToPlan(model, settings);
  const problems = method.plan(projections, settings);
  if (problems[0]) checkQuantised({ method, problem: problems[0] }, settings);
  const groups = projections
    .filter(({ factorised }) => factorised)
    .flatMap(({ layer, projection }, i) => cut(layer, projection, method, problems[i] as GroupShape, settings));
  // The parts of a projection follow one another: σ is theirs together, so they may have to wait for each other in memory. A
  // quantised or transposed gate_up_proj has gate and up in the same bytes, so the projection decides next.
  const firstByte = new Map<string, string>();
  for (const group of groups) {
    const { file, start } = (group.experts[0] as StoredMatrix).data;
    if (group.group === 0) firstByte.set(projectionKey(group), `${file}:${String(start).padStart(16, '0')}`);
  }
  const place = (group: GroupPlan): string => firstByte.get(projectionKey(group)) as string;
  return groups.sort((a, b) => (place(a) === place(b) ? compareGroups(a, b) : place(a) < place(b) ? -1 : 1));
}

/** The projections of all layers to convert. */
function shapesToPlan(model: MoeModel, settings: Settings) {
  const layers = selectLayers(model, settings.layers);
  const wanted = selectProjections(layers, settings);
  const basesOf = allocatedBases(settings);
  return layers.flatMap((layer) =>
    projectionsOf(layer).map((projection) => {
      const bases = wanted.includes(projection) ? basesOf({ layer: layer.layer, projection }) : 'dense';
      return {
        layer,
        projection,
        ...shapeOf(layer, projection),
        factorised: bases !== 'dense',
        bases: bases === 'dense' ? undefined : bases,
        example: layer.experts[projection][0] as StoredMatrix,
      };
    }),
  );
}

/** Finds the bases of a projection in the allocation; undefined without an allocation. Throws `OptionError` if it has none. */
function allocatedBases({ allocation }: Pick<Settings, 'allocation'>) {
  const found = new Map(allocation?.projections.map((it) => [projectionKey(it), it.bases] as const));
  return (key: Pick<GroupKey, 'layer' | 'projection'>): number | 'dense' | undefined => {
    const bases = found.get(projectionKey(key));
    if (allocation && bases === undefined)
      throw new OptionError('--allocation', `it has no bases for layer ${key.layer} ${key.projection}`);
    return bases;
  };
}

/** The dtypes that an allocation of bytes gives a projection; undefined if it gives none. */
const allocatedDtypes = (
  { allocation }: DtypeSettings,
  { layer, projection }: Pick<GroupKey, 'layer' | 'projection'>,
): StoredDtypes | undefined =>
  allocation?.projections.find((it) => it.layer === layer && it.projection === projection)?.stored;

/** The sizes that `planGroups` takes because the default share cannot be kept in the usual way; undefined if it can. */
export const defaultSizes = (model: MoeModel, settings: Settings): DefaultSizes | undefined =>
  methodNamed(settings.method).defaultSizes?.(shapesToPlan(model, settings), settings);

/** Throws `OptionError` if the output cannot be a native checkpoint. */
export function checkNative(
  { family, differences: [difference] = [] }: MoeModel,
  method: Method,
  { maxError }: Partial<Pick<Settings, 'maxError'>> = {},
): void {
  if (!method.native)
    throw new OptionError('--format', `no native form is defined for --method ${method.name} yet. Use --format hf.`);
  if (!family.native)
    throw new OptionError(
      '--format',
      `no native form is defined for ${family.name}.${difference ? ` ${difference}` : ''} Use --format hf.`,
    );
  if (maxError !== undefined)
    throw new OptionError(
      '--max-error',
      'the header of a native checkpoint says which layers are compressed, and is written before the errors are known. Use --format hf; or "mobe fit" and then "mobe export --max-error", which leaves out the layers that fit worse.',
    );
}

/** Throws `OptionError` for quantised factors of a method that has none. */
function checkQuantised({ method, problem }: MethodProblem, { dtype, basesDtype }: DtypeSettings): void {
  if (!isQuantisedName(dtype) && !isQuantisedName(basesDtype)) return;
  const { shared, byExpert } = method.stores(problem);
  if ([...shared, ...byExpert].some(({ coded }) => coded)) return;
  throw new OptionError(
    isQuantisedName(dtype) ? '--dtype' : '--bases-dtype',
    `factors of --method ${method.name} are floats. Give a float dtype, or use --method ${DEFAULT_METHOD.name}`,
  );
}

/**
 * Throws `OptionError` if rebuilt weights are to be quantised. Their modules in other programs have no scales.
 */
export function checkRebuilt({ dtype, basesDtype, allocation }: DtypeSettings): void {
  if (allocation?.projections.some(({ stored }) => stored && hasCodes(stored)))
    throw new OptionError(
      '--allocation',
      'it gives factors quantised dtypes, and --format hf writes rebuilt weights. Use --format mobe',
    );
  const quantised = [dtype, basesDtype].find(isQuantisedName);
  if (quantised)
    throw new OptionError(
      isQuantisedName(dtype) ? '--dtype' : '--bases-dtype',
      `${quantised} is for factors, and --format hf writes rebuilt weights. Use --format mobe, or one of ${Object.keys(FLOAT_NAMES).join(', ')}`,
    );
}

/** The number of experts of a projection, and the shape in which they are factorised. */
function shapeOf({ experts }: ExpertLayer, projection: Projection): GroupShape {
  const matrices = experts[projection];
  return { experts: matrices.length, ...turnedSize(projection, matrices[0] as StoredMatrix) };
}

/**
 * Finds the group with this key in a model, whatever options were used. Returns undefined if the model has no such group of
 * this shape.
 * @param known the method and problem, if they matter; default: the default method and the dense shape
 */
export function groupOf(
  model: MoeModel,
  { layer: number, projection, group, groups }: GroupKey,
  settings: DtypeSettings,
  known?: MethodProblem,
): GroupPlan | undefined {
  const layer = model.layers.find((it) => it.layer === number);
  if (!layer || layer.experts[projection].length === 0) return undefined;
  const { experts, rows, cols } = shapeOf(layer, projection);
  const shape = { experts: experts / groups, rows, cols };
  const { method, problem } = known ?? { method: DEFAULT_METHOD, problem: shape };
  const fits = problem.experts * groups === experts && problem.rows === rows && problem.cols === cols;
  if (!fits || !Number.isInteger(shape.experts)) return undefined;
  return cut(layer, projection, method, problem, settings)[group];
}

/** The settings that decide the dtypes of a group. */
type DtypeSettings = Partial<Pick<Settings, 'dtype' | 'basesDtype' | 'scaleGroup' | 'allocation'>>;

/** The groups of one layer and projection: its experts, cut in order into parts of `problem.experts`. */
function cut(
  { layer, prefix, experts }: ExpertLayer,
  projection: Projection,
  method: Method,
  problem: GroupShape,
  settings: DtypeSettings,
): GroupPlan[] {
  const all = experts[projection];
  const given = isQuantisedName(settings.dtype) ? undefined : settings.dtype;
  const coded = method.writes?.(problem);
  // Weights that are rounded once, to codes, are not rounded to a float dtype before.
  const dtype = coded ? 'F32' : ((given ? undefined : dtypeOf(all)) ?? decodedDtype(settings));
  const size = problem.experts;
  const groups = all.length / size;
  const slices = slicesOf(experts, projection);
  const stored = allocatedDtypes(settings, { layer, projection }) ?? storedDtypes(settings, dtype);
  return Array.from({ length: groups }, (_, group) => ({
    layer,
    prefix,
    projection,
    group,
    groups,
    method,
    problem,
    experts: all.slice(group * size, (group + 1) * size),
    format: factorisedShape(projection, all[0] as StoredMatrix),
    slices: slices?.slice(group * size, (group + 1) * size),
    dtype,
    stored: coded ? plainDtypes(dtype) : stored,
    ...(coded && { coded }),
    names: method.native?.names({ layer, prefix, projection, group, groups }, size) ?? NO_NAMES,
  }));
}

/** The float dtype of the matrices that are not quantised; F32 if they have several; undefined if there are none. */
function dtypeOf(experts: readonly StoredMatrix[]): FloatDtype | undefined {
  const [dtype, ...others] = new Set(experts.flatMap(({ encoding }) => floatDtypeOf(encoding) ?? []));
  return others.length ? 'F32' : dtype;
}

const NO_NAMES: GroupNames = { shared: {}, experts: [] };

/** A tensor that holds a factor, or a part of one. */
export interface FactorTensor extends TensorSpec {
  /** The part of the factor (`NamedPart`). */
  readonly part: NamedPart;
}

/** The tensors of a group in a native checkpoint: its shared factors, and the factors of each expert. */
export function nativeTensors(group: Pick<GroupPlan, 'method' | 'problem' | 'dtype' | 'stored' | 'names'>): {
  readonly shared: readonly FactorTensor[];
  readonly experts: ReadonlyArray<readonly FactorTensor[]>;
} {
  const { names } = group;
  const { shared, byExpert } = storedFactors(group);
  const tensors = (parts: readonly NamedPart[], own: Readonly<Record<string, string>>): FactorTensor[] =>
    parts.map((part) => {
      const { factor, suffix, dtype, shape, bytes } = part;
      return { name: `${own[factor]}${suffix}`, dtype, shape, bytes, part };
    });
  const [common, own] = [partsOf(shared), partsOf(byExpert)];
  return { shared: tensors(common, names.shared), experts: names.experts.map((it) => tensors(own, it)) };
}

/** The shape of the matrix product with which engines are measured for a group. */
export const productOf = (group: MethodProblem | undefined): ProductShape | undefined =>
  group?.method.product(group.problem);

/** Formats numbers as ranges: [0,1,2,5] → "0-2, 5". */
export function formatRanges(numbers: readonly number[]): string {
  const ranges: Array<[number, number]> = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last && number <= last[1] + 1) last[1] = number;
    else ranges.push([number, number]);
  }
  return ranges.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(', ');
}
