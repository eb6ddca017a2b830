/**
 * TF32 in the matrix products of a graph. Tensor cores round the factors of a product to 10 bits of mantissa and sum in f32. These
 * rewritings are plain tensor programs, so every engine runs them.
 */
import { type Graph, graphOf } from './graph.js';
import { add, constant, matmul, mul, sub, type Value } from './ops.js';

/** Multiplied by 2^13 + 1, an f32 loses 13 of its 23 bits when the rest is subtracted again (Veltkamp's splitting). */
const SPLITTER = 2 ** 13 + 1;

type Product = (a: Value, b: Value) => Value;
/** Makes the replacement of a matrix product of two values. */
type Rewrite = (a: Value, b: Value, product: Product) => Value;

/** The graph with other matrix products. */
function rewriteProducts({ inputs, outputs, nodes }: Graph, rewrite: Rewrite): Graph {
  const written = new Map<Value, Value>();
  const of = (node: Value): Value => written.get(node) as Value;
  for (const node of nodes) {
    const { operation, operands } = node;
    const own = operands.map(of);
    if (operation.kind === 'matmul')
      written.set(
        node,
        rewrite(own[0] as Value, own[1] as Value, (a, b) => matmul(a, b, operation)),
      );
    else written.set(node, own.every((it, i) => it === operands[i]) ? node : { ...node, operands: own });
  }
  return graphOf(inputs, new Map([...outputs].map(([name, node]) => [name, of(node)])));
}

/** A function of single values that is computed once for each. */
function once(compute: (a: Value) => Value): (a: Value) => Value {
  const known = new Map<Value, Value>();
  return (a) => {
    const result = known.get(a) ?? compute(a);
    known.set(a, result);
    return result;
  };
}

/** The nearest number with 10 bits of mantissa. Numbers above 10³⁴ overflow. */
function round(a: Value): Value {
  const scaled = mul(a, constant(SPLITTER));
  return sub(scaled, sub(scaled, a));
}

/** A graph whose products have rounded factors, as tensor cores have: for checks on machines that have none. */
export function roundFactors(graph: Graph): Graph {
  const rounded = once(round);
  return rewriteProducts(graph, (a, b, product) => product(rounded(a), rounded(b)));
}

/**
 * A graph whose products are those of f32, also where factors are rounded: each is the sum of three products of the rounded factors and
 * what rounding left of them. The product of both rests is below f32's own rounding.
 */
export function splitFactors(graph: Graph): Graph {
  const high = once(round);
  const low = once((a) => sub(a, high(a)));
  return rewriteProducts(graph, (a, b, product) =>
    add(product(high(a), high(b)), add(product(high(a), low(b)), product(low(a), high(b)))),
  );
}
