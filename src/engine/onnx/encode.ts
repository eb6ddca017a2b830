import type { Graph } from '../graph.js';
import type { Operation, Value } from '../ops.js';
import { AttributeType, ElementType, ModelProto } from './schema.js';

/** Opset 18 is the first in which every reduction takes its axes as an input. IR version 8 belongs to it. */
const OPSET = 18;
const IR_VERSION = 8;
const MICROSOFT = 'com.microsoft';

interface OnnxNode {
  input: string[];
  output: string[];
  opType: string;
  attribute?: object[];
  domain?: string;
}

const UNARY = { neg: 'Neg', sqrt: 'Sqrt', abs: 'Abs', sigmoid: 'Sigmoid', tanh: 'Tanh' } as const;
const BINARY = { add: 'Add', sub: 'Sub', mul: 'Mul', div: 'Div' } as const;
const REDUCE = { sum: 'ReduceSum', max: 'ReduceMax' } as const;

/** Differences between the providers' kernels. */
export interface Dialect {
  /** Whether the provider multiplies transposed operands in one operation. If not, they are transposed first. */
  readonly transposingMatmul: boolean;
}

const EVERYTHING: Dialect = { transposingMatmul: true };

/** A traced graph as the bytes of an ONNX model. */
export function encodeOnnx(graph: Graph, dialect: Dialect = EVERYTHING): Uint8Array {
  const names = new Map<Value, string>();
  const node: OnnxNode[] = [];
  const initializer: object[] = [];
  const int64Initializer = (values: readonly number[]): string => {
    const name = `shape${initializer.length}`;
    const rawData = new Uint8Array(BigInt64Array.from(values, BigInt).buffer);
    initializer.push({ name, dims: [values.length], dataType: ElementType.INT64, rawData });
    return name;
  };
  for (const value of graph.nodes) {
    const { operation } = value;
    const name = operation.kind === 'input' ? operation.name : `v${names.size}`;
    names.set(value, name);
    if (operation.kind === 'input') continue;
    if (operation.kind === 'constant') {
      const rawData = new Uint8Array(operation.data.buffer, operation.data.byteOffset, operation.data.byteLength);
      initializer.push({ name, dims: value.shape, dataType: ElementType.FLOAT, rawData });
      continue;
    }
    const operands = value.operands.map((operand) => names.get(operand) as string);
    if (operation.kind === 'matmul' && !dialect.transposingMatmul) {
      node.push(...plainMatmul(operation, value, operands, name));
      continue;
    }
    node.push({ output: [name], ...encodeOperation(operation, operands, value.shape, int64Initializer) });
  }
  // An output may also be an input, or have two names. So each output is an identity node; the runtime removes them.
  for (const [name, value] of graph.outputs) {
    node.push({ input: [names.get(value) as string], output: [outputName(name)], opType: 'Identity' });
  }
  const model = {
    irVersion: IR_VERSION,
    producerName: 'mobe-stream',
    opsetImport: [
      { domain: '', version: OPSET },
      { domain: MICROSOFT, version: 1 },
    ],
    graph: {
      name: 'step',
      node,
      initializer,
      input: [...graph.inputs].map(([name, value]) => valueInfo(name, value.shape)),
      output: [...graph.outputs].map(([name, value]) => valueInfo(outputName(name), value.shape)),
    },
  };
  return ModelProto.encode(ModelProto.fromObject(model)).finish();
}

/** A matrix product from operations that every provider has. */
function plainMatmul(
  { transposeA, transposeB }: Extract<Operation, { kind: 'matmul' }>,
  { operands }: Value,
  names: readonly string[],
  output: string,
): OnnxNode[] {
  // Gemm needs no transposed copy of B, which makes long products ⟨D_i, B_j⟩ ten times as fast (32 × 12288 × 8, SwiftShader).
  if (transposeB && operands.every(({ shape }) => shape.length === 2)) {
    const attribute = [int('transA', Number(transposeA)), int('transB', 1)];
    return [{ input: [...names], output: [output], opType: 'Gemm', attribute }];
  }
  const nodes: OnnxNode[] = [];
  const input = operands.map(({ shape }, i) => {
    const name = names[i] as string;
    if (!(i === 0 ? transposeA : transposeB)) return name;
    const transposed = `${output}t${i}`;
    const attribute = [ints('perm', swapLastTwo(shape.length))];
    nodes.push({ input: [name], output: [transposed], opType: 'Transpose', attribute });
    return transposed;
  });
  return [...nodes, { input, output: [output], opType: 'MatMul' }];
}

/** Name of an output in the ONNX graph. ONNX has one namespace for all values, and an output may have an input's name. */
export const outputName = (name: string): string => `${name}:out`;

function encodeOperation(
  operation: Exclude<Operation, { kind: 'input' } | { kind: 'constant' }>,
  input: string[],
  shape: readonly number[],
  int64Initializer: (values: readonly number[]) => string,
): Omit<OnnxNode, 'output'> {
  switch (operation.kind) {
    case 'unary':
      return { input, opType: UNARY[operation.op] };
    case 'binary':
      return { input, opType: BINARY[operation.op] };
    case 'matmul': {
      if (!operation.transposeA && !operation.transposeB) return { input, opType: 'MatMul' };
      const attribute = [int('transA', Number(operation.transposeA)), int('transB', Number(operation.transposeB))];
      return { input, opType: 'FusedMatMul', domain: MICROSOFT, attribute };
    }
    case 'reduce':
      return {
        input: [...input, int64Initializer(operation.axes)],
        opType: REDUCE[operation.op],
        attribute: [int('keepdims', 1)],
      };
    case 'softmax':
      return { input, opType: 'Softmax', attribute: [int('axis', -1)] };
    case 'reshape':
      return { input: [...input, int64Initializer(shape)], opType: 'Reshape' };
    case 'transpose':
      return { input, opType: 'Transpose', attribute: [ints('perm', operation.axes)] };
    case 'slice': {
      const { start, end, axis } = operation;
      return { input: [...input, ...[start, end, axis].map((it) => int64Initializer([it]))], opType: 'Slice' };
    }
    case 'concat':
      return { input, opType: 'Concat', attribute: [int('axis', operation.axis)] };
  }
}

const int = (name: string, i: number) => ({ name, i, type: AttributeType.INT });
const ints = (name: string, values: readonly number[]) => ({ name, ints: values, type: AttributeType.INTS });

/** The axes of a tensor with its last two exchanged. */
const swapLastTwo = (rank: number): number[] => [...Array(rank - 2).keys(), rank - 1, rank - 2];

const valueInfo = (name: string, shape: readonly number[]) => ({
  name,
  type: { tensorType: { elemType: ElementType.FLOAT, shape: { dim: shape.map((dimValue) => ({ dimValue })) } } },
});
