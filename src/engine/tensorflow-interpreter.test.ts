import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import { describe, expect, test } from 'vitest';
import { testEngine } from '../../fixtures/engine-suite.js';
import { EngineError } from '../errors.js';
import type { EngineTensor } from './engine.js';
import { trace } from './graph.js';
import * as ops from './ops.js';
import { createInterpreter, type TensorFlow } from './tensorflow-interpreter.js';

tf.enableProdMode(); // keeps its advertisement for the native backend quiet
await tf.ready();
const identity = { name: 'tensorflow', kind: 'cpu', device: 'TensorFlow.js' } as const;
/** Its own types are those of tensors with far more to them. */
const cpu = tf as unknown as TensorFlow;
const engine = createInterpreter(cpu, identity);

describe('on the plain CPU backend', () => testEngine(engine));

describe('memory', () => {
  /** A chain with a constant, and a product whose operands must both be widened. */
  const graph = trace({ x: [4, 1, 3], w: [2, 3, 3] }, ({ x, w }) => {
    let y = ops.reshape(x, [2, 2, 3]);
    for (let i = 0; i < 20; i++) y = ops.silu(ops.add(ops.matmul(y, w), 0.5));
    return { y, wide: ops.matmul(ops.reshape(x, [2, 1, 2, 3]), ops.reshape(w, [1, 2, 3, 3])) };
  });
  const inputs = () => ({
    x: engine.tensor(new Float32Array(12).fill(0.1), [4, 1, 3]),
    w: engine.tensor(new Float32Array(18).fill(0.1), [2, 3, 3]),
  });

  test('after programs, results and inputs are disposed of, there are as many tensors as before', async () => {
    const { numTensors: before, numBytes: bytesBefore } = tf.memory();
    const program = await engine.compile(graph);
    for (let i = 0; i < 3; i++) {
      const tensors = inputs();
      const results = await program.run(tensors);
      for (const tensor of [...Object.values(tensors), ...Object.values(results)]) tensor.dispose();
    }
    await program.dispose();
    expect(tf.memory().numTensors).toBe(before);
    expect(tf.memory().numBytes).toBe(bytesBefore);
  });

  test('what stays after a run is its results', async () => {
    const program = await engine.compile(graph);
    const tensors = inputs();
    const before = tf.memory().numTensors;
    const results = await program.run(tensors);
    expect(tf.memory().numTensors - before).toBe(2);
    for (const tensor of [...Object.values(tensors), ...Object.values(results)]) tensor.dispose();
    await program.dispose();
  });

  test('within a run a value is freed after its last reader, so the number alive does not grow with the length', async () => {
    let most = 0;
    const watched: TensorFlow = {
      ...cpu,
      add(a, b) {
        most = Math.max(most, tf.memory().numTensors);
        return cpu.add(a, b);
      },
    };
    const watcher = createInterpreter(watched, identity);
    const peak = async (length: number): Promise<number> => {
      const program = await watcher.compile(
        trace({ x: [8] }, ({ x }) => {
          let y: ops.Value = x;
          for (let i = 0; i < length; i++) y = ops.add(ops.silu(y), x);
          return { y };
        }),
      );
      const x = watcher.tensor(new Float32Array(8), [8]);
      most = 0;
      const { y } = await program.run({ x });
      for (const tensor of [x, y as EngineTensor]) tensor.dispose();
      await program.dispose();
      return most;
    };
    expect(await peak(50)).toBe(await peak(3));
  });

  test('a run that fails leaves nothing', async () => {
    const failing: TensorFlow = {
      ...cpu,
      div() {
        throw new TypeError('out of memory');
      },
    };
    const broken = createInterpreter(failing, identity);
    const program = await broken.compile(trace({ x: [3] }, ({ x }) => ({ y: ops.div(ops.neg(ops.abs(x)), 2) })));
    const x = broken.tensor(new Float32Array(3), [3]);
    const before = tf.memory().numTensors;
    await expect(program.run({ x })).rejects.toThrow('out of memory');
    expect(tf.memory().numTensors).toBe(before);
  });
});

describe('misuse is told:', () => {
  const scalar = trace({ x: [1] }, ({ x }) => ({ y: x }));
  test('a missing input', async () => {
    await expect((await engine.compile(scalar)).run({})).rejects.toThrow('"x" is missing');
  });
  test('a wrong shape', async () => {
    const program = await engine.compile(scalar);
    await expect(program.run({ x: engine.tensor(new Float32Array(2), [2]) })).rejects.toThrow('expected [1]');
  });
  test('a tensor used after it was disposed of', async () => {
    const tensor = engine.tensor(new Float32Array(1), [1]);
    tensor.dispose();
    tensor.dispose(); // twice is harmless
    await expect(engine.read(tensor)).rejects.toThrow(EngineError);
  });
  test("another engine's tensor", async () => {
    const other = createInterpreter({ ...cpu }, identity);
    const program = await engine.compile(scalar);
    await expect(program.run({ x: other.tensor(new Float32Array(1), [1]) })).rejects.toThrow('not a tensor of this');
  });
});
