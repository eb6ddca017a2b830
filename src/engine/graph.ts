import { GraphError } from '../errors.js';
import { input, type Value } from './ops.js';

/** A traced tensor program. Each node comes after the nodes that it reads. */
export interface Graph {
  readonly inputs: ReadonlyMap<string, Value>;
  readonly outputs: ReadonlyMap<string, Value>;
  readonly nodes: readonly Value[];
}

/** Shapes of a program's inputs, by name. */
export type Shapes<Name extends string> = Record<Name, readonly number[]>;

/** An input that has no shape is left out of the graph, and the program gets undefined for it. */
export type Inputs<S> = { [Name in keyof S]: undefined extends S[Name] ? Value | undefined : Value };

/**
 * Calls `program` once on symbolic inputs of the given shapes and records what it computes.
 * Inputs that no output depends on stay inputs: a caller may feed the same state to several graphs.
 */
export function trace<
  In extends string,
  Out extends string,
  S extends Record<In, readonly number[] | undefined> = Shapes<In>,
>(shapes: S, program: (inputs: Inputs<S>) => Record<Out, Value>): Graph {
  const inputs = new Map<string, Value>();
  for (const [name, shape] of Object.entries<readonly number[] | undefined>(shapes))
    if (shape) inputs.set(name, input(name, shape));
  return graphOf(inputs, new Map(Object.entries<Value>(program(Object.fromEntries(inputs) as Inputs<S>))));
}

/** The graph of these outputs. Throws a `GraphError` if they depend on an input that is not among `inputs`. */
export function graphOf(inputs: Graph['inputs'], outputs: Graph['outputs']): Graph {
  const ordered = new Set<Value>();
  const visit = (node: Value): void => {
    if (ordered.has(node)) return;
    for (const operand of node.operands) visit(operand);
    ordered.add(node);
  };
  for (const node of outputs.values()) visit(node);
  for (const node of ordered) {
    if (node.operation.kind === 'input' && inputs.get(node.operation.name) !== node) {
      throw new GraphError(`input "${node.operation.name}" belongs to another graph`);
    }
  }
  return { inputs, outputs, nodes: [...ordered] };
}
