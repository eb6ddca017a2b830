/** Plans everything that a conversion will write, from headers and options alone. */
import { elementCount, type FloatDtype, floatBytes } from '../checkpoint/dtype.js';
import { floatDtypeOf } from '../checkpoint/encoding.js';
import { floatTensor, type TensorInfo, type TensorSpec } from '../checkpoint/header.js';
import { type Checkpoint, CONFIG_FILE, INDEX_FILE } from '../checkpoint/open-checkpoint.js';
import { attachedTo, isQuantised, quantisedMatrix } from '../checkpoint/quantisation.js';
import { matrixStack } from '../checkpoint/quantised/stack.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { denseParameters, groupParameters } from '../methods/parameters.js';
import { expertsOf } from '../models/expert-names.js';
import type { ExpertLayer } from '../models/family.js';
import { type Layout, layoutShards } from '../output/layout.js';
import type { ByteRange } from '../sources/files.js';
import { factorLayout, factorTensors } from './factor-files.js';
import { type FactorTensor, type GroupPlan, nativeTensors, ownersOf, sourceBytes } from './group-plan.js';
import { type NativeLayer, type RestoredTensor, restoredTensors } from './native-layers.js';
import { packedTensors } from './packed-weights.js';
import { decodedDtype, type Format, isNative, type OutputFormat } from './settings.js';
import { type Slice, sliceOf } from './slices.js';
import { type FormRange, formRanges, withSourceForms } from './source-form.js';

/** The source of an output tensor, or of a part of one. */
export interface Copy {
  /** The output tensor, and the byte in it at which the copy begins. */
  readonly target: string;
  readonly offset: number;
  /** The range that is copied as bytes, unless `decode` is set. */
  readonly source: ByteRange;
  /** Set if the matrix is quantised or its dtype changes: it is decoded and rounded to `dtype`. */
  readonly decode?: { readonly matrix: StoredMatrix; readonly dtype: FloatDtype };
  /** Set instead of `decode` if several matrices, or a transposed one, fill the place together. */
  readonly assemble?: { readonly slice: Slice; readonly dtype: FloatDtype };
  /** Set instead of these if the bytes follow from the plan. */
  readonly constant?: Uint8Array;
}

/** All that a conversion reads and writes: groups to fit, ranges to copy, and the shards of the output. */
export interface ConversionPlan {
  readonly source: Checkpoint;
  readonly groups: readonly GroupPlan[];
  readonly format: OutputFormat;
  readonly layout: Layout;
  /** The tensors that are not factorised, in the order of the source. */
  readonly copies: readonly Copy[];
  /** Whether every expert has a tensor of its own in the output. */
  readonly separate: boolean;
  /** Number of quantised matrices in the source, and how many of them stay quantised. */
  readonly quantised: { readonly before: number; readonly after: number };
  readonly parametersBefore: number;
  readonly parametersAfter: number;
  /** Tensor bytes, without headers. */
  readonly bytesBefore: number;
  readonly bytesAfter: number;
}

/** The files that make an output folder loadable. They appear after all others. */
export const LOADABLE_LAST = [INDEX_FILE, CONFIG_FILE] as const;

/** Input of `planConversion`. */
export interface PlanInput {
  source: Checkpoint;
  groups: readonly GroupPlan[];
  format: Format;
  shardBytes: number;
  /** The layers of a dense source. */
  layers?: readonly ExpertLayer[];
  /** Source tensors that are not written: the factors without σ that an expansion starts from. */
  dropped?: ReadonlySet<string>;
  /** The tensors of a native source that hold factors, by name. */
  factors?: ReadonlyMap<string, FactorTensor>;
  /** Experts of a native source, which get back the places that they had in the source of that. */
  restored?: readonly NativeLayer[];
  /** Whether quantised tensors stay quantised, except the experts of converted layers whose groups have no forms. */
  keepQuantised?: boolean;
  /** Whether converted experts get the quantisation of the source too, where it can be written. */
  quantiseAgain?: boolean;
  /** The dtype of tensors that are decoded but not factorised. */
  decodedDtype?: FloatDtype;
  /** Whether every expert gets a tensor of its own even if the source's are fused. */
  separate?: boolean;
}

/**
 * Lays out the output in the order of the source. A group's shared factors take the place before its first expert, so that
 * copying and factorising both move through the files in one direction. Throws an `InputError` if a quantised tensor cannot be
 * decoded.
 */
export function planConversion(input: PlanInput): ConversionPlan {
  const {
    source,
    format,
    layers = input.restored ?? [],
    dropped,
    keepQuantised = false,
    decodedDtype: wanted = decodedDtype({}),
  } = input;
  const groups = input.quantiseAgain ? withSourceForms(input.groups, source) : input.groups;
  const rewritten = formRanges(groups);
  const native = isNative(input);
  const { separate = false } = input;
  const owners = ownersOf(groups);
  const factors = factorsByExpert(source, native ? groups : []);
  const converted = new Set(groups.flatMap(({ layer, forms }) => (forms ? [] : layer)));
  const prefixes = new Map(layers.map(({ prefix, layer }) => [prefix, converted.has(layer)] as const));
  const outputs: TensorSpec[] = [];
  const copies: Copy[] = [];
  const written = new Set<RestoredTensor>();
  const quantised = { before: 0, after: 0 };
  let parametersBefore = 0;
  let parametersAfter = 0;

  const put = (tensor: TensorSpec, parameters = elementCount(tensor.shape)): void => {
    outputs.push(tensor);
    parametersAfter += parameters;
  };
  const putAsIs = (tensor: TensorInfo, computed: readonly FormRange[] = []): void => {
    const { name, dtype, shape, start, end } = tensor;
    put({ name, dtype, shape, bytes: end - start }, parametersOf(tensor, source));
    copies.push(...copiesAround(tensor, computed));
    if (isQuantised(tensor)) quantised.after++;
  };
  const copy = (matrix: StoredMatrix, target: string, offset: number, dtype: FloatDtype): void => {
    copies.push(copyOf(matrix, target, offset, dtype));
  };
  const ownerOf = (matrices: readonly StoredMatrix[]): GroupPlan | undefined =>
    matrices.map(({ name }) => owners.get(name)).find((it) => it !== undefined);
  /** Copies the matrices of a fused tensor that no group writes. */
  const copyOthers = (matrices: readonly StoredMatrix[], target: string, dtype: FloatDtype): void => {
    for (const matrix of matrices)
      if (!owners.has(matrix.name)) copy(matrix, target, matrix.place.element * floatBytes(dtype), dtype);
  };
  const putAlone = (matrix: StoredMatrix): void => {
    const { name, encoding } = matrix;
    const group = owners.get(name);
    if (group && native) {
      for (const { part, ...factor } of factors.get(name) ?? []) put(factor, part.parameters);
      return;
    }
    if (group?.coded) {
      const { data, scales, shape, shapeBytes } = packedTensors(matrix, group.coded);
      put(data, matrix.rows * matrix.cols);
      put(scales, 0);
      put(shape, 0);
      copies.push({ target: shape.name, offset: 0, source: matrix.data, constant: shapeBytes });
      return;
    }
    const dtype = group?.dtype ?? floatDtypeOf(encoding) ?? wanted;
    const { rows, cols } = group?.format ?? matrix; // the source of an expansion has A in place of the weights
    put(floatTensor(name, dtype, rows, cols));
    if (!group) copy(matrix, name, 0, dtype);
  };
  const restored = input.restored && restoredTensors(input.restored);
  const putBack = ({ name, shape, matrices }: RestoredTensor): void => {
    const { dtype } = ownerOf(matrices) as GroupPlan;
    put(floatTensor(name, dtype, ...shape));
    if (matrices.some(({ place }) => place.steps)) return; // a group's weights are written with those that lie between them
    copyOthers(matrices, name, dtype);
  };
  const putFused = (tensor: TensorInfo, experts: ReadonlyArray<readonly StoredMatrix[]>): void => {
    const matrices = experts.flat();
    const group = ownerOf(matrices);
    if (!group && !isQuantised(tensor)) {
      putAsIs(tensor);
      return;
    }
    const dtype = group?.dtype ?? wanted;
    const { place } = matrices[0] as StoredMatrix;
    put(floatTensor(place.tensor, dtype, ...(place.tensor === tensor.name ? tensor.shape : fusedShape(experts))));
    if (matrices.some((matrix) => matrix.place.steps)) {
      // A slice with weights of a group is written with them.
      for (const own of experts)
        if (!own.some(({ name }) => owners.has(name))) copies.push(assembledCopy(sliceOf(own), dtype));
      return;
    }
    copyOthers(matrices, place.tensor, dtype);
  };

  // In a native output, a fused tensor with a factorised projection is split into the factors and a tensor for each dense expert.
  const isSplit = (matrices: readonly StoredMatrix[], prefix: string): boolean =>
    native ? matrices.some(({ name }) => owners.has(name)) : separate && prefixes.has(prefix);

  for (const tensor of source.shards.flatMap((shard) => shard.tensors)) {
    const factor = input.factors?.get(tensor.name);
    parametersBefore += factor?.part.parameters ?? parametersOf(tensor, source);
    if (!factor && isQuantised(tensor)) quantised.before++;
    if (dropped?.has(tensor.name)) continue;
    const computed = rewritten.get(tensor.name);
    if (computed) {
      putAsIs(tensor, computed);
      continue;
    }
    if (restored) {
      const target = restored.get(factor ? nameOf(factor) : tensor.name);
      const isPlain = !isQuantised(tensor) && !attachedTo(tensor, source);
      if (target && !written.has(target)) putBack(target);
      if (target) written.add(target);
      else if (isPlain) putAsIs(tensor);
      if (target || isPlain) continue;
    }
    const data = attachedTo(tensor, source) ?? tensor;
    const found = expertsOf(data, source);
    const matrices = found.map(({ matrix }) => matrix);
    const prefix = found[0]?.prefix ?? '';
    // Other programs read all experts of a layer in one form, and this program reads factors beside any tensor that stands alone.
    const isSeparate = matrices.length > 0 && !isFused(matrices) && !matrices.some(({ name }) => owners.has(name));
    const stays = !prefixes.get(prefix) || (native && isSeparate);
    if (isQuantised(data) && keepQuantised && stays) putAsIs(tensor);
    else if (data !== tensor)
      continue; // decoded with its data
    else if (isFused(matrices) && !isSplit(matrices, prefix)) putFused(tensor, byExpert(found));
    else if (matrices.length > 0) matrices.forEach(putAlone);
    else if (isQuantised(tensor)) putAlone(quantisedMatrix(tensor, source));
    else putAsIs(tensor);
  }
  const layout = layoutShards(outputs, input.shardBytes);
  return {
    source,
    groups,
    format,
    layout,
    copies,
    separate: native || separate,
    quantised,
    parametersBefore,
    parametersAfter,
    bytesBefore: [...source.tensors.values()].reduce((sum, { start, end }) => sum + end - start, 0),
    bytesAfter: layout.tensorBytes,
  };
}

/** The copies of what a tensor has outside of some ranges, which are in order. */
function copiesAround(tensor: TensorInfo, ranges: readonly FormRange[]): Copy[] {
  const { name: target, file, start: first, end: last } = tensor;
  if (ranges.length === 0) return [{ target, offset: 0, source: tensor }];
  const starts = [first, ...ranges.map(({ source }) => source.end)];
  const ends = [...ranges.map(({ source }) => source.start), last];
  return starts.flatMap((start, i) => {
    const end = ends[i] as number;
    return start < end ? { target, offset: start - first, source: { file, start, end } } : [];
  });
}

/**
 * The tensors that take an expert's place in a native output: its factors. Before the first expert of a group come the shared
 * factors.
 */
function factorsByExpert(source: Checkpoint, groups: readonly GroupPlan[]): Map<string, readonly FactorTensor[]> {
  const shards = new Map(source.shards.map(({ path }, i) => [path, i] as const));
  const before = ({ data: a }: StoredMatrix, { data: b }: StoredMatrix): number =>
    (shards.get(a.file) as number) - (shards.get(b.file) as number) || a.start - b.start;
  const factors = new Map<string, readonly FactorTensor[]>();
  for (const group of groups) {
    const { shared, experts: own } = nativeTensors(group);
    const first = group.experts.reduce((a, b) => (before(a, b) <= 0 ? a : b));
    group.experts.forEach((expert, i) => {
      const factorsOf = own[i] as readonly FactorTensor[];
      factors.set(expert.name, expert === first ? [...shared, ...factorsOf] : factorsOf);
    });
  }
  return factors;
}

/** The name of the factor that a tensor holds a part of. */
const nameOf = ({ name, part }: FactorTensor): string => name.slice(0, name.length - part.suffix.length);

/** Whether a tensor holds more than one matrix that would have a tensor of its own if it were not fused. */
const isFused = (matrices: readonly StoredMatrix[]): boolean =>
  matrices.some(({ name, place }) => place.tensor !== name);

/** The matrices of a fused tensor, expert by expert. */
function byExpert(found: ReturnType<typeof expertsOf>): StoredMatrix[][] {
  const experts: StoredMatrix[][] = [];
  for (const { expert, matrix } of found) {
    const known = experts[expert];
    if (known) known.push(matrix);
    else experts[expert] = [matrix];
  }
  return experts;
}

/** The shape of a fused tensor of plain floats, if that of the quantised one is another. */
function fusedShape(experts: ReadonlyArray<readonly StoredMatrix[]>): number[] {
  const matrices = experts[0] as readonly StoredMatrix[];
  const { cols, place } = matrices[0] as StoredMatrix;
  const outputs = matrices.reduce((sum, { rows }) => sum + rows, 0);
  const transposed = (place.steps?.column ?? 1) !== 1;
  return [experts.length, ...(transposed ? [cols, outputs] : [outputs, cols])];
}

/** The bytes that a copy writes. */
export function copyBytes({ source, decode, assemble, constant }: Copy): number {
  if (constant) return constant.length;
  if (assemble) return assemble.slice.size * floatBytes(assemble.dtype);
  return decode ? decode.matrix.rows * decode.matrix.cols * floatBytes(decode.dtype) : source.end - source.start;
}

/** The matrices that a copy decodes; none if it copies bytes. */
export const decodedMatrices = ({ decode, assemble }: Copy): readonly StoredMatrix[] =>
  assemble?.slice.matrices ?? (decode ? [decode.matrix] : []);

/** The copy of a slice, whose matrices are decoded. */
function assembledCopy(slice: Slice, dtype: FloatDtype): Copy {
  const { data } = slice.matrices[0] as StoredMatrix;
  const offset = slice.element * floatBytes(dtype);
  return { target: slice.tensor, offset, source: data, assemble: { slice, dtype } };
}

/** The copy of a matrix to a place in the output. It decodes the matrix if the dtype differs. */
export function copyOf(matrix: StoredMatrix, target: string, offset: number, dtype: FloatDtype): Copy {
  const same = matrix.encoding.kind === 'float' && matrix.encoding.dtype === dtype;
  return { target, offset, source: matrix.data, ...(!same && { decode: { matrix, dtype } }) };
}

/**
 * The number of weights in a tensor. Scales of quantised tensors count 0. A packed INT4 tensor has eight weights in each word.
 */
export function parametersOf(tensor: TensorInfo, source: Checkpoint): number {
  if (attachedTo(tensor, source)) return 0;
  if (!isQuantised(tensor) || tensor.shape.length < 2) return elementCount(tensor.shape);
  const { count, rows, cols } =
    tensor.shape.length === 2 ? { count: 1, ...quantisedMatrix(tensor, source) } : matrixStack(tensor, source);
  return count * rows * cols;
}

/** The bytes of the shards that a conversion writes, including headers. */
export const outputBytes = ({ layout }: ConversionPlan): number =>
  layout.shards.reduce((sum, { bytes }) => sum + bytes, 0);

/** Shards that are on the disk together while finished ones are sent away: being filled, waiting, being sent. */
const HELD_SHARDS = 5;

/** About how many bytes are on the disk at a time if finished shards are sent away. Copies are written before most groups. */
export function heldBytes(plan: ConversionPlan): number {
  const copied = plan.copies.reduce((sum, copy) => sum + copyBytes(copy), 0);
  const largest = Math.max(0, ...plan.layout.shards.map(({ bytes }) => bytes));
  return Math.min(outputBytes(plan), copied + HELD_SHARDS * largest);
}

/**
 * Lays out factor files, one for each group. `parametersAfter` and `bytesAfter` are those of a native checkpoint with these
 * factors.
 */
export function planFactors(source: Checkpoint, groups: readonly GroupPlan[]): ConversionPlan {
  const shards = groups.map(factorLayout);
  const sum = (numbers: number[]): number => numbers.reduce((total, it) => total + it, 0);
  const tensors = [...source.tensors.values()];
  const parametersBefore = sum(tensors.map((tensor) => parametersOf(tensor, source)));
  const bytesBefore = sum(tensors.map(({ start, end }) => end - start));
  const factorBytes = (group: GroupPlan): number => sum(factorTensors(group).map(({ bytes }) => bytes));
  return {
    source,
    groups,
    format: 'factors',
    layout: { shards, tensorBytes: sum(groups.map(factorBytes)) },
    copies: [],
    separate: true,
    quantised: { before: 0, after: 0 },
    parametersBefore,
    parametersAfter:
      parametersBefore + sum(groups.map((group) => groupParameters(group) - denseParameters(group.problem))),
    bytesBefore,
    bytesAfter: bytesBefore + sum(groups.map((group) => factorBytes(group) - sourceBytes(group))),
  };
}
