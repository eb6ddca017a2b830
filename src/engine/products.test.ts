import { describe, expect, test } from 'vitest';
import { testedEngines } from '../../fixtures/engines.js';
import { createRandom } from '../linalg/random.js';
import type { Engine, EngineTensor } from './engine.js';
import { type Graph, trace } from './graph.js';
import { add, matmul, mul, type Value } from './ops.js';
import { roundFactors, splitFactors } from './products.js';

const random = createRandom(3);
const [rows, inner, cols] = [5, 40, 7];
const normals = (count: number): Float32Array =>
  Float32Array.from({ length: count }, () => random.normal() * 10 ** (8 * random.uniform() - 4));
const a = normals(rows * inner);
const b = normals(inner * cols);

/** The nearest number with 10 bits of mantissa, by its bits. */
function rounded(value: number): number {
  const bits = new DataView(new ArrayBuffer(4));
  bits.setFloat32(0, value);
  bits.setUint32(0, (bits.getUint32(0) + 0x1000) & ~0x1fff);
  return bits.getFloat32(0);
}

/** The product in f64, of factors that are rounded or not, with the sum of its terms' magnitudes. */
const productOf = (of: (value: number) => number) =>
  Array.from({ length: rows * cols }, (_, at) => {
    const terms = Array.from({ length: inner }, (_, k) => {
      const [left, right] = [a[Math.floor(at / cols) * inner + k], b[k * cols + (at % cols)]] as [number, number];
      return of(left) * of(right);
    });
    return { value: terms.reduce((x, y) => x + y), size: terms.reduce((x, y) => x + Math.abs(y), 0) };
  });

/** The largest distance of a program's product from that of `of`, as a share of the sum of its terms' magnitudes. */
async function distance(engine: Engine, graph: Graph, of: (value: number) => number): Promise<number> {
  const program = await engine.compile(graph);
  const { y } = await program.run({ a: engine.tensor(a, [rows, inner]), b: engine.tensor(b, [inner, cols]) });
  const found = await engine.read(y as EngineTensor);
  await program.dispose();
  return Math.max(...productOf(of).map(({ value, size }, i) => Math.abs((found[i] as number) - value) / size));
}

const same = (value: number): number => value;
const product = (shapes = { a: [rows, inner], b: [inner, cols] }) =>
  trace(shapes, (it) => ({ y: matmul(it.a as Value, it.b as Value) }));
/** TF32 alone is some thousand times as far off. */
const CLOSE = 2 ** -21;

const engines = (await testedEngines()).map((engine) => [engine.name, engine] as const);
describe.each(engines)('on %s', (_, engine) => {
  test('factors are rounded to 10 bits of mantissa', async () => {
    expect(await distance(engine, roundFactors(product()), rounded)).toBeLessThan(CLOSE);
    expect(await distance(engine, roundFactors(product()), same)).toBeGreaterThan(2 ** -15);
  });

  test('split factors give the product of f32, rounded or not', async () => {
    expect(await distance(engine, splitFactors(product()), same)).toBeLessThan(CLOSE);
    expect(await distance(engine, roundFactors(splitFactors(product())), same)).toBeLessThan(CLOSE);
  });
});

test('what is no product stays as it is, and a factor of two products is rounded once', () => {
  const plain = trace({ x: [3, 3] }, ({ x }) => ({ y: add(mul(x, x), 1) }));
  expect(roundFactors(plain).nodes).toEqual(plain.nodes);
  const twice = trace({ x: [3, 3] }, ({ x }) => ({ y: matmul(matmul(x, x), x, { transposeA: true }) }));
  // Three operations and a constant for each of two factors.
  expect(roundFactors(twice).nodes).toHaveLength(twice.nodes.length + 8);
  const [last] = roundFactors(twice).nodes.slice(-1);
  expect(last?.operation).toEqual({ kind: 'matmul', transposeA: true, transposeB: false });
});
