import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { testedEngines } from '../../fixtures/engines.js';
import { type Exact, evaluate } from '../../fixtures/oracle.js';
import { EngineError, GraphError } from '../errors.js';
import type { Engine, EngineTensor } from './engine.js';
import { type Graph, trace } from './graph.js';
import * as ops from './ops.js';

const engines = await testedEngines();

/** Error that f32 rounding may leave after the few operations of an element, relative to the sum of its terms' magnitudes. */
const TOLERANCE = 16 * 2 ** -24;

type Shapes = Record<string, number[]>;
type Values = Record<string, Float32Array>;

/** A table of programs: name, shapes of the inputs, computation, and the inputs if they matter. */
type Case = [
  name: string,
  shapes: Shapes,
  program: (it: Record<string, ops.Value>) => ops.Value,
  values?: Record<string, number[]>,
];

/** Values in (−2, 2) without a period along any axis. */
const someValues = (shape: readonly number[], seed: number): Float32Array =>
  Float32Array.from({ length: ops.elements(shape) }, (_, i) => 2 * Math.sin(1 + i * 1.7 + seed * 0.9));

function valuesFor(shapes: Shapes, given: Record<string, number[]> = {}): Values {
  return Object.fromEntries(
    Object.entries(shapes).map(([name, shape], i) => [
      name,
      given[name] ? Float32Array.from(given[name]) : someValues(shape, i),
    ]),
  );
}

async function run(engine: Engine, graph: Graph, values: Values): Promise<Record<string, Float32Array>> {
  const program = await engine.compile(graph);
  const inputs: Record<string, EngineTensor> = {};
  for (const [name, { shape }] of graph.inputs) inputs[name] = engine.tensor(values[name] as Float32Array, shape);
  const outputs = await program.run(inputs);
  const results: Record<string, Float32Array> = {};
  for (const [name, tensor] of Object.entries(outputs)) results[name] = (await engine.read(tensor)).slice();
  for (const tensor of [...Object.values(inputs), ...Object.values(outputs)]) tensor.dispose();
  await program.dispose();
  return results;
}

function expectClose(actual: Float32Array | undefined, { values, magnitudes }: Exact): void {
  expect(actual).toHaveLength(values.length);
  for (const [i, value] of values.entries()) {
    const error = Math.abs((actual?.[i] as number) - value);
    // The comparison is written so that NaN fails.
    if (!(error <= TOLERANCE * (magnitudes[i] as number) + 1e-37))
      expect.fail(`element ${i} is ${actual?.[i]}, expected ${value} ± ${TOLERANCE * (magnitudes[i] as number)}`);
  }
}

async function check(engine: Engine, graph: Graph, values: Values): Promise<void> {
  const results = await run(engine, graph, values);
  for (const [name, exact] of evaluate(graph, values)) expectClose(results[name], exact);
}

const { add, sub, mul, div, matmul, sum, max, reshape } = ops;
const EDGES = [-100, -20, -2, -0.5, -1e-6, 0, 1e-6, 0.25, 1, 3, 20, 100];
const binary = (name: string, a: number[], b: number[]): Case[] =>
  Object.entries({ add, sub, mul, div }).map(([op, f]) => [
    `${op}: ${name}`,
    { a, b },
    (it) => f(it.a as ops.Value, it.b as ops.Value),
    // Divisors are not near 0.
    { b: Array.from({ length: ops.elements(b) }, (_, i) => (i % 2 ? -1 : 1) * (0.5 + (i % 7))) },
  ]);
const product = (name: string, a: number[], b: number[], options: Parameters<typeof matmul>[2] = {}): Case => [
  `matmul: ${name}`,
  { a, b },
  (it) => matmul(it.a as ops.Value, it.b as ops.Value, options),
];
const one = (name: string, shape: number[], op: (a: ops.Value) => ops.Value, values?: number[]): Case => [
  name,
  { a: shape },
  ({ a }) => op(a as ops.Value),
  values ? { a: values } : {},
];

const CASES: Case[] = [
  one('neg', [EDGES.length], ops.neg, EDGES),
  one('abs', [EDGES.length], ops.abs, EDGES),
  one('sqrt, from 0 on', [5], ops.sqrt, [0, 1e-12, 0.25, 2, 1e12]),
  one('sigmoid', [EDGES.length], ops.sigmoid, EDGES),
  one('tanh', [EDGES.length], ops.tanh, EDGES),
  one('square', [EDGES.length], ops.square, EDGES),
  one('sigmoid of a matrix', [7, 9], ops.sigmoid),
  ...binary('equal shapes', [3, 5], [3, 5]),
  ...binary('a row', [3, 5], [1, 5]),
  ...binary('a column, from the left', [3, 1], [3, 5]),
  ...binary('fewer axes', [2, 3, 5], [5]),
  ...binary('both grow', [2, 1, 5], [4, 1]),
  ...binary('a scalar', [2, 3], []),
  ...binary('scalars', [], []),
  ...binary('four axes', [2, 1, 3, 4], [2, 3, 1]),
  one('numbers on either side', [2, 3], (a) => sub(1, div(add(mul(a, 3), 0.5), 7))),
  one('a baked-in matrix', [3, 3], (a) => add(a, ops.identity(3))),
  product('plain', [4, 6], [6, 5]),
  product('odd sizes', [33, 70], [70, 17]),
  product('batched', [3, 4, 6], [3, 6, 5]),
  product('two batch axes', [2, 3, 4, 6], [2, 3, 6, 5]),
  product('one matrix for a batch', [3, 4, 6], [6, 5]),
  product('a batch for one matrix', [4, 6], [3, 6, 5]),
  product('a batch of one for a batch', [3, 4, 6], [1, 6, 5]),
  product('one batch axis for two', [2, 3, 4, 6], [3, 6, 5]),
  product('an axis of one before the last', [2, 3, 4, 6], [2, 1, 6, 5]),
  product('batches that both broadcast', [2, 1, 4, 6], [1, 3, 6, 5]),
  product('a row by a column', [1, 40], [40, 1]),
  product('a column by a row', [7, 1], [1, 9]),
  product('one element', [1, 1], [1, 1]),
  product('a long sum', [2, 5000], [5000, 3]),
  product('a long sum, b transposed', [2, 5000], [3, 5000], { transposeB: true }),
  product('two axes, a transposed', [6, 4], [6, 5], { transposeA: true }),
  product('two axes, b transposed', [4, 6], [5, 6], { transposeB: true }),
  product('two axes, both transposed', [6, 4], [5, 6], { transposeA: true, transposeB: true }),
  product('batched, a transposed', [3, 6, 4], [3, 6, 5], { transposeA: true }),
  product('batched, b transposed', [3, 4, 6], [3, 5, 6], { transposeB: true }),
  product('batched, both transposed', [3, 6, 4], [3, 5, 6], { transposeA: true, transposeB: true }),
  product('two batch axes, both transposed', [2, 3, 6, 4], [2, 3, 5, 6], { transposeA: true, transposeB: true }),
  product('broadcast and transposed', [6, 4], [3, 5, 6], { transposeA: true, transposeB: true }),
  one('a matrix by itself, transposed', [3, 20, 31], (a) => matmul(a, a, { transposeB: true })),
  one('sum of the first axis', [4, 5], (a) => sum(a, [0])),
  one('sum of the last axis', [4, 5], (a) => sum(a, [1])),
  one('sum of the middle axis', [3, 4, 5], (a) => sum(a, [1])),
  one('sum of two axes', [3, 4, 5], (a) => sum(a, [1, 2])),
  one('sum of the outer axes', [3, 4, 5], (a) => sum(a, [0, 2])),
  one('sum of an axis of 1', [3, 1, 5], (a) => sum(a, [1])),
  one('sum of many', [3, 4099], (a) => sum(a, [1])),
  one('max of the first axis', [4, 5], (a) => max(a, [0])),
  one('max of the last axis, all below 0', [4, 5], (a) => max(sub(a, 10), [1])),
  one('max of two axes', [3, 4, 5], (a) => max(a, [1, 2])),
  one('total', [3, 4, 5], ops.total),
  one('total of a large tensor', [70, 1000], ops.total),
  one('total of a scalar', [], ops.total),
  one('softmax', [4, 6], ops.softmax),
  one('softmax of three axes', [2, 3, 5], ops.softmax),
  one('softmax of large values', [2, 3], ops.softmax, [80, 79, -80, 1000, 999, 0]),
  one('softmax of one value', [3, 1], ops.softmax),
  one('reshape', [3, 8], (a) => mul(reshape(a, [2, 3, 4]), 2)),
  one('reshape keeps the order of elements', [2, 3, 2], (a) =>
    add(reshape(a, [3, 4]), ops.constant(Float32Array.of(1, 2, 3, 4), [4])),
  ),
  one('reshape to a scalar and back', [1, 1], (a) => reshape(add(reshape(a, []), 1), [1, 1, 1])),
  one('transpose of a matrix', [3, 5], (a) => ops.transpose(a, [1, 0])),
  one('transpose of the first two of three axes', [3, 4, 5], (a) => ops.transpose(a, [1, 0, 2])),
  one('transpose around four axes', [2, 3, 4, 5], (a) => ops.transpose(a, [3, 0, 2, 1])),
  one('transpose that changes nothing', [2, 3], (a) => ops.transpose(a, [0, 1])),
  one('slice of the first axis', [5, 4], (a) => ops.slice(a, 0, 1, 3)),
  one('slice of the middle axis', [3, 6, 4], (a) => ops.slice(a, 1, 2, 6)),
  one('slice of the last axis, counted from the end', [2, 3, 8], (a) => ops.slice(a, -1, 0, 5)),
  one('concat on the last axis', [2, 3], (a) => ops.concat([a, ops.mul(a, 2), ops.slice(a, 1, 0, 1)], -1)),
  one('concat on the first axis', [2, 3], (a) => ops.concat([ops.neg(a), a], 0)),
  one('halves exchanged', [2, 3, 6], (a) => ops.concat([ops.neg(ops.slice(a, -1, 3, 6)), ops.slice(a, -1, 0, 3)], -1)),
  one('softmax where most is masked', [2, 4], ops.softmax, [1, -1e30, -1e30, -1e30, 2, 3, -1e30, -1e30]),
  one('a value read twice by one operation and later again', [4], (a) => {
    const once = add(a, 1);
    return add(mul(once, once), once);
  }),
  one('an output that is an input', [2, 3], (a) => a),
];

describe.each(engines.map((engine) => [engine.name, engine] as const))('%s', (_, engine) => {
  test('names what it runs on', () => {
    expect(engine.device).toMatch(/\w/);
    expect(['cpu', 'gpu']).toContain(engine.kind);
    if (/swiftshader|llvmpipe/i.test(engine.device)) expect(engine.kind).toBe('cpu');
    if (engine.name === 'tensorflow') expect(engine.device).toMatch(/\(TensorFlow \d+\.\d+/);
  });

  test.each(CASES)('%s', async (_name, shapes, program, values) =>
    check(
      engine,
      trace(shapes, (it) => ({ y: program(it) })),
      valuesFor(shapes, values),
    ),
  );

  test('matmul of any shape, with every combination of transposes', async () => {
    const size = fc.integer({ min: 1, max: 9 });
    const cases = fc.record({ batch: size, i: size, j: size, k: size, a: fc.boolean(), b: fc.boolean() });
    await fc.assert(
      fc.asyncProperty(cases, async ({ batch, i, j, k, a, b }) => {
        const shapes = { a: a ? [batch, k, i] : [batch, i, k], b: b ? [batch, j, k] : [batch, k, j] };
        const graph = trace(shapes, (it) => ({ y: matmul(it.a, it.b, { transposeA: a, transposeB: b }) }));
        await check(engine, graph, valuesFor(shapes));
      }),
      { numRuns: 20 },
    );
  });

  test('an output may be an input, and state may keep its name', async () => {
    const graph = trace({ x: [2] }, ({ x }) => ({ x: add(x, 1), same: x, apart: reshape(x, [2, 1]) }));
    const { x, same, apart } = await run(engine, graph, { x: Float32Array.of(1, 2) });
    expect([x, same, apart]).toEqual([Float32Array.of(2, 3), Float32Array.of(1, 2), Float32Array.of(1, 2)]);
  });

  test('an output may be read on, serve two names, or be a constant; an input may be left out', async () => {
    const graph = trace({ a: [2], unused: [3] }, ({ a }) => {
      const first = mul(a, 2);
      return { first, second: add(first, 1), again: first, constant: ops.constant(3) };
    });
    const results = await run(engine, graph, { a: Float32Array.of(1, 2), unused: new Float32Array(3) });
    expect(Object.keys(results)).toEqual(['first', 'second', 'again', 'constant']);
    expect(Object.values(results).map((values) => [...values])).toEqual([[2, 4], [3, 5], [2, 4], [3]]);
  });

  test('the sum of a million squares is right to f32', async () => {
    const x = someValues([4, 512, 512], 0);
    const { y } = await run(
      engine,
      trace({ x: [4, 512, 512] }, ({ x }) => ({ y: ops.total(ops.square(x)) })),
      { x },
    );
    const expected = x.reduce((sum, value) => sum + value * value, 0);
    expect(Math.abs((y?.[0] as number) / expected - 1)).toBeLessThan(1e-6);
  });

  test('a result outlives what it was made from, and what comes after', async () => {
    const shape = [64, 65];
    const program = await engine.compile(trace({ x: shape }, ({ x }) => ({ same: x, next: add(x, 1) })));
    let state = engine.tensor(new Float32Array(64 * 65), shape);
    const kept: EngineTensor[] = [];
    for (let i = 0; i < 6; i++) {
      const { same, next } = (await program.run({ x: state })) as { same: EngineTensor; next: EngineTensor };
      state.dispose();
      kept.push(same);
      state = next;
    }
    for (const [i, tensor] of [...kept, state].entries())
      expect(new Set(await engine.read(tensor))).toEqual(new Set([i]));
    for (const tensor of [...kept, state]) tensor.dispose();
    await program.dispose();
  });

  test('an array that is fed again and again stays what it was', async () => {
    const program = await engine.compile(trace({ x: [3] }, ({ x }) => ({ y: mul(x, 2) })));
    const x = engine.tensor(Float32Array.of(1, 2, 3), [3]);
    for (let i = 0; i < 3; i++) {
      const { y } = (await program.run({ x })) as { y: EngineTensor };
      expect([...(await engine.read(y))]).toEqual([2, 4, 6]);
      y.dispose();
    }
    expect([...(await engine.read(x))]).toEqual([1, 2, 3]);
  });

  test('two programs of the same graph do not share results', async () => {
    const graph = () => trace({ x: [1] }, ({ x }) => ({ y: mul(x, 2) }));
    const programs = [await engine.compile(graph()), await engine.compile(graph())];
    const results: EngineTensor[] = [];
    for (const [i, program] of programs.entries())
      results.push((await program.run({ x: engine.tensor(Float32Array.of(i + 1), [1]) })).y as EngineTensor);
    const values = [];
    for (const y of results) values.push([...(await engine.read(y))]);
    expect(values).toEqual([[2], [4]]);
  });

  describe('misuse is told:', () => {
    const scalar = trace({ x: [1] }, ({ x }) => ({ y: x }));
    test('a missing input', async () => {
      await expect((await engine.compile(scalar)).run({})).rejects.toThrow(EngineError);
    });
    test('a wrong shape', async () => {
      const program = await engine.compile(scalar);
      await expect(program.run({ x: engine.tensor(new Float32Array(2), [2]) })).rejects.toThrow('expected [1]');
    });
    test('a tensor used after it was disposed of', async () => {
      const program = await engine.compile(scalar);
      const tensor = engine.tensor(new Float32Array(1), [1]);
      const { y } = (await program.run({ x: tensor })) as { y: EngineTensor };
      tensor.dispose();
      y.dispose();
      for (const gone of [tensor, y]) {
        await expect((async () => engine.read(gone))()).rejects.toThrow(EngineError);
        await expect(program.run({ x: gone })).rejects.toThrow(EngineError);
      }
    });
    test("another engine's tensor", async () => {
      const foreign = { shape: [1], dispose: () => undefined };
      await expect((await engine.compile(scalar)).run({ x: foreign })).rejects.toThrow(EngineError);
    });
  });
});

test('the CPU is always among them', () => expect(engines.map(({ name }) => name)).toContain('onnx-cpu'));

test.each<[string, () => unknown]>([
  ['matmul', () => trace({ a: [2, 3], b: [2, 3] }, ({ a, b }) => ({ y: matmul(a, b) }))],
  ['broadcast', () => trace({ a: [2, 3], b: [2] }, ({ a, b }) => ({ y: add(a, b) }))],
  ['reshape', () => trace({ a: [2, 3] }, ({ a }) => ({ y: reshape(a, [5]) }))],
  ['transpose', () => trace({ a: [2, 3] }, ({ a }) => ({ y: ops.transpose(a, [0, 0]) }))],
  ['slice', () => trace({ a: [2, 3] }, ({ a }) => ({ y: ops.slice(a, 1, 2, 4) }))],
  ['slice of no axis', () => trace({ a: [2, 3] }, ({ a }) => ({ y: ops.slice(a, 2, 0, 1) }))],
  ['concat', () => trace({ a: [2, 3], b: [3, 2] }, ({ a, b }) => ({ y: ops.concat([a, b], 0) }))],
])('shapes that do not fit: %s', (_, build) => expect(build).toThrow(GraphError));
