import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { testEngine } from '../../fixtures/engine-suite.js';
import { EngineError, GraphError } from '../errors.js';
import { createEngine } from './create-engine.js';
import type { Engine } from './engine.js';
import { measureGemmRate } from './gemm-rate.js';
import { trace } from './graph.js';
import * as ops from './ops.js';

const engine: Engine = await createEngine('onnx-cpu', { threads: 1 });

/** Runs a program on arrays and returns its output "y". */
async function run(
  shapes: Record<string, number[]>,
  values: Record<string, number[]>,
  program: (inputs: Record<string, ops.Value>) => ops.Value,
): Promise<number[]> {
  const compiled = await engine.compile(trace(shapes, (inputs) => ({ y: program(inputs) })));
  const tensors = Object.fromEntries(
    Object.entries(values).map(([name, data]) => [name, engine.tensor(Float32Array.from(data), shapes[name] ?? [])]),
  );
  const { y } = await compiled.run(tensors);
  const result = y ? [...(await engine.read(y))] : [];
  await compiled.dispose();
  return result;
}

describe('what every engine must do', () => testEngine(engine));

const close = (actual: number[], expected: number[]) => {
  expect(actual).toHaveLength(expected.length);
  for (const [i, value] of actual.entries()) expect(value).toBeCloseTo(expected[i] as number, 5);
};
const X = [-2, -0.5, 0, 0.25, 1, 3];
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

describe('elementwise', () => {
  const unary: Array<[string, (a: ops.Value) => ops.Value, (x: number) => number]> = [
    ['neg', ops.neg, (x) => -x],
    ['abs', ops.abs, Math.abs],
    ['sigmoid', ops.sigmoid, sigmoid],
    ['silu', ops.silu, (x) => x * sigmoid(x)],
    ['tanh', ops.tanh, Math.tanh],
    ['square', ops.square, (x) => x * x],
    ['sqrt of abs', (a) => ops.sqrt(ops.abs(a)), (x) => Math.sqrt(Math.abs(x))],
  ];
  test.each(unary)('%s', async (_, op, expected) =>
    close(await run({ a: [2, 3] }, { a: X }, ({ a }) => op(a as ops.Value)), X.map(expected)),
  );

  test('binary operations broadcast', async () => {
    const values = { a: X, b: [10, 20, 30] };
    const binary = async (op: typeof ops.add) =>
      run({ a: [2, 3], b: [1, 3] }, values, ({ a, b }) => op(a as ops.Value, b as ops.Value));
    close(await binary(ops.add), [8, 19.5, 30, 10.25, 21, 33]);
    close(await binary(ops.sub), [-12, -20.5, -30, -9.75, -19, -27]);
    close(await binary(ops.mul), [-20, -10, 0, 2.5, 20, 90]);
    close(await binary(ops.div), [-0.2, -0.025, 0, 0.025, 0.05, 0.1]);
  });
});

test('sum and max keep the reduced axis; total is a scalar', async () => {
  close(await run({ a: [2, 3] }, { a: X }, ({ a }) => ops.sum(a as ops.Value, [1])), [-2.5, 4.25]);
  close(await run({ a: [2, 3] }, { a: X }, ({ a }) => ops.max(a as ops.Value, [0])), [0.25, 1, 3]);
  close(await run({ a: [2, 3] }, { a: X }, ({ a }) => ops.total(a as ops.Value)), [1.75]);
});

test('softmax over the last axis', async () => {
  const row = (values: number[]) => {
    const exps = values.map(Math.exp);
    return exps.map((value) => value / exps.reduce((a, b) => a + b));
  };
  close(await run({ a: [2, 3] }, { a: X }, ({ a }) => ops.softmax(a as ops.Value)), [
    ...row(X.slice(0, 3)),
    ...row(X.slice(3)),
  ]);
});

test('matmul with every combination of transposes equals the sum by hand', async () => {
  const cases = fc.record({
    batch: fc.integer({ min: 1, max: 3 }),
    i: fc.integer({ min: 1, max: 5 }),
    j: fc.integer({ min: 1, max: 5 }),
    k: fc.integer({ min: 1, max: 5 }),
    transposeA: fc.boolean(),
    transposeB: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(cases, async ({ batch, i, j, k, transposeA, transposeB }) => {
      const at = (n: number) => Math.sin(n + 1);
      const a = Array.from({ length: batch * i * k }, (_, n) => at(n));
      const b = Array.from({ length: batch * k * j }, (_, n) => at(n + 100));
      const expected: number[] = [];
      for (let e = 0; e < batch; e++)
        for (let x = 0; x < i; x++)
          for (let y = 0; y < j; y++) {
            let sum = 0;
            for (let z = 0; z < k; z++) {
              const left = a[e * i * k + (transposeA ? z * i + x : x * k + z)] as number;
              sum += left * (b[e * k * j + (transposeB ? y * k + z : z * j + y)] as number);
            }
            expected.push(sum);
          }
      const shapes = { a: transposeA ? [batch, k, i] : [batch, i, k], b: transposeB ? [batch, j, k] : [batch, k, j] };
      close(
        await run(shapes, { a, b }, (it) =>
          ops.matmul(it.a as ops.Value, it.b as ops.Value, { transposeA, transposeB }),
        ),
        expected,
      );
    }),
    { numRuns: 40 },
  );
});

test('an output may be an input, and state may keep its name', async () => {
  const program = await engine.compile(trace({ x: [2] }, ({ x }) => ({ x: ops.add(x, 1), same: x })));
  const out = await program.run({ x: engine.tensor(Float32Array.of(1, 2), [2]) });
  expect([...(await engine.read(out.x as NonNullable<typeof out.x>))]).toEqual([2, 3]);
  expect([...(await engine.read(out.same as NonNullable<typeof out.same>))]).toEqual([1, 2]);
});

test('two programs of the same graph do not share results', async () => {
  const graph = () => trace({ x: [1] }, ({ x }) => ({ y: ops.mul(x, 2) }));
  const programs = [await engine.compile(graph()), await engine.compile(graph())];
  const results = [];
  for (const [i, program] of programs.entries())
    results.push((await program.run({ x: engine.tensor(Float32Array.of(i + 1), [1]) })).y);
  const values = await Promise.all(results.map(async (y) => [...(await engine.read(y as NonNullable<typeof y>))]));
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
    const tensor = engine.tensor(new Float32Array(1), [1]);
    tensor.dispose();
    await expect(engine.read(tensor)).rejects.toThrow(EngineError);
  });
  test.each<[string, () => unknown]>([
    ['matmul', () => trace({ a: [2, 3], b: [2, 3] }, ({ a, b }) => ({ y: ops.matmul(a, b) }))],
    ['broadcast', () => trace({ a: [2, 3], b: [2] }, ({ a, b }) => ({ y: ops.add(a, b) }))],
    ['reshape', () => trace({ a: [2, 3] }, ({ a }) => ({ y: ops.reshape(a, [5]) }))],
  ])('shapes that do not fit: %s', (_, build) => expect(build).toThrow(GraphError));
});

test('the measured rate is positive', async () =>
  expect(await measureGemmRate(engine, 64, 64, 64)).toBeGreaterThan(1e6));
