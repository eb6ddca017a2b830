/**
 * Symbolic f32 tensors and the operations on them. Calling an operation computes nothing: it returns a {@link Value}
 * that describes the computation. So a plain function over `Value`s is a tensor program. `trace` (graph.ts) turns it into a
 * {@link Graph} that any engine can run.
 */
import { GraphError } from '../errors.js';

/** Elementwise operations on one tensor. */
export type UnaryOp = 'neg' | 'sqrt' | 'sigmoid' | 'tanh' | 'abs';
/** Elementwise operations on two tensors. */
export type BinaryOp = 'add' | 'sub' | 'mul' | 'div';
/** Reductions. */
export type ReduceOp = 'sum' | 'max';

/** The operation that makes a value, with its parameters. */
export type Operation =
  | { kind: 'input'; name: string }
  | { kind: 'constant'; data: Float32Array }
  | { kind: 'unary'; op: UnaryOp }
  | { kind: 'binary'; op: BinaryOp }
  | { kind: 'matmul'; transposeA: boolean; transposeB: boolean }
  | { kind: 'reduce'; op: ReduceOp; axes: number[] }
  | { kind: 'softmax' }
  | { kind: 'reshape' }
  | { kind: 'transpose'; axes: readonly number[] }
  | { kind: 'slice'; axis: number; start: number; end: number }
  | { kind: 'concat'; axis: number };

/** One symbolic tensor: row-major f32 of a fixed shape. */
export interface Value {
  readonly shape: readonly number[];
  readonly operation: Operation;
  readonly operands: readonly Value[];
}

const value = (shape: readonly number[], operation: Operation, operands: readonly Value[] = []): Value => ({
  shape,
  operation,
  operands,
});

/** Number of elements of a shape. */
export const elements = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);

/** An input of the graph. */
export const input = (name: string, shape: readonly number[]): Value => value(shape, { kind: 'input', name });

/** A constant of the graph: a scalar, or an array with its shape. Throws a `GraphError` if they do not fit. */
export function constant(data: number | Float32Array, shape: readonly number[] = []): Value {
  const array = typeof data === 'number' ? Float32Array.of(data) : data;
  if (array.length !== elements(shape))
    throw new GraphError(`constant of ${array.length} elements for shape [${shape}]`);
  return value(shape, { kind: 'constant', data: array });
}

/** The size×size identity matrix. */
export function identity(size: number): Value {
  const data = new Float32Array(size * size);
  for (let i = 0; i < size; i++) data[i * size + i] = 1;
  return constant(data, [size, size]);
}

const unary =
  (op: UnaryOp) =>
  (a: Value): Value =>
    value(a.shape, { kind: 'unary', op }, [a]);

/** Elementwise −x. `sqrt`, `abs`, `sigmoid` and `tanh` are elementwise too. */
export const neg = unary('neg');
export const sqrt = unary('sqrt');
export const abs = unary('abs');
export const sigmoid = unary('sigmoid');
export const tanh = unary('tanh');

const binary =
  (op: BinaryOp) =>
  (a: Value | number, b: Value | number): Value => {
    const left = typeof a === 'number' ? constant(a) : a;
    const right = typeof b === 'number' ? constant(b) : b;
    return value(broadcastShapes(left.shape, right.shape), { kind: 'binary', op }, [left, right]);
  };

/** Elementwise with NumPy broadcasting; a number stands for a scalar constant. */
export const add = binary('add');
export const sub = binary('sub');
export const mul = binary('mul');
export const div = binary('div');

/**
 * Matrix product over the last two axes. Either operand may be transposed first. Leading (batch) axes broadcast.
 * a: (…, i, k), or (…, k, i) if transposed; b: (…, k, j), or (…, j, k) if transposed; result: (…, i, j).
 * Throws a `GraphError` if the shapes do not fit.
 */
export function matmul(a: Value, b: Value, options: { transposeA?: boolean; transposeB?: boolean } = {}): Value {
  const { transposeA = false, transposeB = false } = options;
  if (a.shape.length < 2 || b.shape.length < 2) throw new GraphError(`matmul of [${a.shape}] and [${b.shape}]`);
  const [rows, inner] = lastTwo(a.shape, transposeA);
  const [innerB, cols] = lastTwo(b.shape, transposeB);
  if (inner !== innerB) throw new GraphError(`matmul of [${a.shape}] and [${b.shape}]: ${inner} is not ${innerB}`);
  const batch = broadcastShapes(a.shape.slice(0, -2), b.shape.slice(0, -2));
  return value([...batch, rows, cols], { kind: 'matmul', transposeA, transposeB }, [a, b]);
}

const reduce =
  (op: ReduceOp) =>
  (a: Value, axes: number[]): Value => {
    const shape = a.shape.map((size, axis) => (axes.includes(axis) ? 1 : size));
    return value(shape, { kind: 'reduce', op, axes }, [a]);
  };

/** Reduces over `axes`, which remain as axes of size 1. */
export const sum = reduce('sum');
export const max = reduce('max');

/** Softmax over the last axis. */
export const softmax = (a: Value): Value => value(a.shape, { kind: 'softmax' }, [a]);

/** The same elements in another shape. Throws a `GraphError` if their number differs. */
export function reshape(a: Value, shape: readonly number[]): Value {
  if (elements(shape) !== elements(a.shape)) throw new GraphError(`reshape of [${a.shape}] to [${shape}]`);
  return value(shape, { kind: 'reshape' }, [a]);
}

/** Axis i of the result is axis `axes[i]` of a. Throws a `GraphError` if `axes` is not a permutation. */
export function transpose(a: Value, axes: readonly number[]): Value {
  if ([...axes].sort((x, y) => x - y).join() !== [...a.shape.keys()].join())
    throw new GraphError(`transpose of [${a.shape}] to axes [${axes}]`);
  return value(
    axes.map((axis) => a.shape[axis] as number),
    { kind: 'transpose', axes },
    [a],
  );
}

/** Elements `start` to `end` (exclusive) of one axis. A negative axis counts from the last. Throws a `GraphError`. */
export function slice(a: Value, axis: number, start: number, end: number): Value {
  const at = axis < 0 ? axis + a.shape.length : axis;
  const size = a.shape[at];
  if (size === undefined || start < 0 || end <= start || end > size)
    throw new GraphError(`slice ${start} to ${end} on axis ${axis} of [${a.shape}]`);
  return value(a.shape.with(at, end - start), { kind: 'slice', axis: at, start, end }, [a]);
}

/** Joins tensors along an axis; one tensor remains as it is. A negative axis counts from the last. Throws a `GraphError` if their other axes differ. */
export function concat(parts: readonly Value[], axis: number): Value {
  const [first] = parts;
  const at = first && axis < 0 ? axis + first.shape.length : axis;
  const others = (it: Value): string => it.shape.map((size, i) => (i === at ? '' : size)).join();
  if (first?.shape[at] === undefined || parts.some((it) => others(it) !== others(first)))
    throw new GraphError(`concat of ${parts.map(({ shape }) => `[${shape}]`).join(', ')} on axis ${axis}`);
  if (parts.length === 1) return first;
  const size = parts.reduce((sum, { shape }) => sum + (shape[at] as number), 0);
  return value(first.shape.with(at, size), { kind: 'concat', axis: at }, parts);
}

/** Elementwise x². */
export const square = (a: Value): Value => mul(a, a);

/**
 * Sum of all elements, as a scalar. It sums axis by axis: ONNX Runtime adds numbers one after the other in f32, and over a
 * million squares at once the rounding made the sum too small by 2e-5.
 */
export const total = (a: Value): Value =>
  reshape(
    a.shape.reduceRight((rest, _, axis) => sum(rest, [axis]), a),
    [],
  );

function lastTwo(shape: readonly number[], transposed: boolean): [number, number] {
  const [rows, cols] = shape.slice(-2) as [number, number];
  return transposed ? [cols, rows] : [rows, cols];
}

function broadcastShapes(a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, i) => {
    const x = a[a.length - rank + i] ?? 1;
    const y = b[b.length - rank + i] ?? 1;
    if (x !== y && x !== 1 && y !== 1) throw new GraphError(`shapes [${a}] and [${b}] do not broadcast`);
    return x === 1 ? y : x;
  });
}
