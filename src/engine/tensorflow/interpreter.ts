/**
 * Runs traced graphs with TensorFlow.js, one call for each operation, on any of its backends.
 * All backends compute in f32, row-major, as the graph expects.
 */
import { EngineError, EngineRunError } from '../../errors.js';
import type { Engine, EngineFacts, EngineTensor, Program } from '../engine.js';
import type { Graph } from '../graph.js';
import { matchInputs } from '../match-inputs.js';
import { elements, type Operation, type Value } from '../ops.js';

/** A TensorFlow.js tensor. Several may share content; each must be disposed of. */
export interface TfTensor {
  readonly shape: number[];
  /** Another tensor with the same content; copies nothing. */
  clone(): TfTensor;
  data(): Promise<unknown>;
  dispose(): void;
}

/** The part of TensorFlow.js that is used. `@tensorflow/tfjs-core` and every package that re-exports it have this. */
export interface TensorFlow {
  tensor(data: Float32Array, shape: number[]): TfTensor;
  /** Runs `compute`, then disposes of every tensor that it made and did not `keep`, even if it throws. */
  tidy(compute: () => void): void;
  keep(x: TfTensor): TfTensor;
  neg(x: TfTensor): TfTensor;
  sqrt(x: TfTensor): TfTensor;
  abs(x: TfTensor): TfTensor;
  sigmoid(x: TfTensor): TfTensor;
  tanh(x: TfTensor): TfTensor;
  add(a: TfTensor, b: TfTensor): TfTensor;
  sub(a: TfTensor, b: TfTensor): TfTensor;
  mul(a: TfTensor, b: TfTensor): TfTensor;
  div(a: TfTensor, b: TfTensor): TfTensor;
  matMul(a: TfTensor, b: TfTensor, transposeA: boolean, transposeB: boolean): TfTensor;
  sum(x: TfTensor, axes: number[], keepDims: boolean): TfTensor;
  max(x: TfTensor, axes: number[], keepDims: boolean): TfTensor;
  softmax(x: TfTensor): TfTensor;
  reshape(x: TfTensor, shape: number[]): TfTensor;
  transpose(x: TfTensor, axes: number[]): TfTensor;
  slice(x: TfTensor, begin: number[], size: number[]): TfTensor;
  concat(parts: TfTensor[], axis: number): TfTensor;
  broadcastTo(x: TfTensor, shape: number[]): TfTensor;
}

/** An engine on a TensorFlow.js module. `facts` describe the device that the module runs on. */
export function createInterpreter(tf: TensorFlow, facts: EngineFacts): Engine {
  return {
    ...facts,
    compile: async (graph) => new InterpretedProgram(tf, facts, graph),
    tensor: (data, shape) => new HeldTensor(tf, tf.tensor(data, [...shape])),
    read: async (tensor) => (await unwrap(tf, tensor, 'read').data()) as Float32Array,
  };
}

class HeldTensor implements EngineTensor {
  private disposed = false;

  constructor(
    readonly owner: TensorFlow,
    private readonly tensor: TfTensor,
  ) {}

  get shape(): readonly number[] {
    return this.tensor.shape;
  }

  get live(): TfTensor {
    if (this.disposed) throw new EngineError('a tensor was used after it was disposed of');
    return this.tensor;
  }

  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.tensor.dispose();
  }
}

/** Throws an `EngineError` for another engine's tensor. */
function unwrap(tf: TensorFlow, tensor: EngineTensor, name: string): TfTensor {
  if (tensor instanceof HeldTensor && tensor.owner === tf) return tensor.live;
  throw new EngineError(`"${name}" is not a tensor of this engine`);
}

/** One operation, and the values that no later operation reads. */
interface Instruction {
  readonly value: Value;
  readonly operation: Exclude<Operation, { kind: 'input' } | { kind: 'constant' }>;
  readonly lastUseOf: readonly Value[];
}

class InterpretedProgram implements Program {
  private readonly instructions: readonly Instruction[];
  /** Uploaded once, freed with the program. */
  private readonly constants = new Map<Value, TfTensor>();

  constructor(
    private readonly tf: TensorFlow,
    private readonly facts: EngineFacts,
    private readonly graph: Graph,
  ) {
    this.instructions = schedule(graph);
    for (const value of graph.nodes) {
      if (value.operation.kind === 'constant')
        this.constants.set(value, tf.tensor(value.operation.data, [...value.shape]));
    }
  }

  async run(inputs: Readonly<Record<string, EngineTensor>>): Promise<Record<string, EngineTensor>> {
    const values = new Map(this.constants);
    for (const [name, tensor] of matchInputs(this.graph, inputs))
      values.set(this.graph.inputs.get(name) as Value, unwrap(this.tf, tensor, name));
    try {
      return this.execute(values);
    } catch (error) {
      throw new EngineRunError(this.facts.name, this.facts.device, (error as Error).message);
    }
  }

  private execute(values: Map<Value, TfTensor>): Record<string, EngineTensor> {
    let results: Record<string, EngineTensor> = {};
    this.tf.tidy(() => {
      for (const { value, operation, lastUseOf } of this.instructions) {
        const operands = value.operands.map((operand) => values.get(operand) as TfTensor);
        values.set(value, execute(this.tf, operation, operands, value.shape));
        for (const spent of lastUseOf) values.get(spent)?.dispose();
      }
      // Each output is a clone: it may also be an input or a constant, or have two names.
      results = Object.fromEntries(
        Array.from(this.graph.outputs, ([name, value]) => {
          const result = this.tf.keep((values.get(value) as TfTensor).clone());
          return [name, new HeldTensor(this.tf, result)];
        }),
      );
    });
    return results;
  }

  async dispose(): Promise<void> {
    for (const tensor of this.constants.values()) tensor.dispose();
    this.constants.clear();
  }
}

/** The graph's operations in order. Inputs, constants and outputs are kept; other values are freed after their last reader. */
function schedule({ nodes, outputs }: Graph): Instruction[] {
  const kept = new Set(outputs.values());
  const instructions: Instruction[] = [];
  for (const value of [...nodes].reverse()) {
    const { operation } = value;
    if (operation.kind === 'input' || operation.kind === 'constant') continue;
    const lastUseOf = new Set<Value>();
    for (const operand of value.operands) {
      const { kind } = operand.operation;
      if (kind === 'input' || kind === 'constant' || kept.has(operand)) continue;
      kept.add(operand); // the loop runs backwards, so this is the last reader
      lastUseOf.add(operand);
    }
    instructions.push({ value, operation, lastUseOf: [...lastUseOf] });
  }
  return instructions.reverse();
}

/** @param shape the result's */
function execute(
  tf: TensorFlow,
  operation: Instruction['operation'],
  operands: readonly TfTensor[],
  shape: readonly number[],
): TfTensor {
  const [a, b] = operands as [TfTensor, TfTensor];
  switch (operation.kind) {
    case 'unary':
      return tf[operation.op](a);
    case 'binary':
      return tf[operation.op](a, b);
    case 'matmul':
      return batchMatMul(tf, a, b, operation, shape.slice(0, -2));
    case 'reduce':
      return tf[operation.op](a, operation.axes, true);
    case 'softmax':
      return tf.softmax(a);
    case 'reshape':
      return tf.reshape(a, [...shape]);
    case 'transpose':
      return tf.transpose(a, [...operation.axes]);
    case 'slice':
      return tf.slice(
        a,
        shape.map((_, axis) => (axis === operation.axis ? operation.start : 0)),
        [...shape],
      );
    case 'concat':
      return tf.concat([...operands], operation.axis);
  }
}

/** @param batch the result's leading axes. */
function batchMatMul(
  tf: TensorFlow,
  a: TfTensor,
  b: TfTensor,
  { transposeA, transposeB }: { transposeA: boolean; transposeB: boolean },
  batch: readonly number[],
): TfTensor {
  // The CPU backend repeats the shorter batch cyclically. That is right only if it has one matrix or as many as the other.
  const wide = [a, b].map((operand) => {
    const own = operand.shape.slice(0, -2);
    const fits = elements(own) === 1 || elements(own) === elements(batch);
    return fits ? operand : tf.broadcastTo(operand, [...batch, ...operand.shape.slice(-2)]);
  }) as [TfTensor, TfTensor];
  return tf.matMul(...wide, transposeA, transposeB);
}
