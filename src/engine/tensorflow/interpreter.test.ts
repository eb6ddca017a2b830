/** Tests of this engine only. engines.test.ts tests what all engines have in common. */
import { describe, expect, test } from 'vitest';
import { TENSORFLOW_JS, tensorflowJs } from '../../../fixtures/engines.js';
import { EngineRunError } from '../../errors.js';
import type { EngineTensor } from '../engine.js';
import { trace } from '../graph.js';
import * as ops from '../ops.js';
import { createInterpreter, type TensorFlow } from './interpreter.js';

const tf = await tensorflowJs();
const engine = createInterpreter(tf, TENSORFLOW_JS);

describe('memory', () => {
  /** A chain with a constant, and a product whose operands must both be widened. */
  const graph = trace({ x: [4, 1, 3], w: [2, 3, 3] }, ({ x, w }) => {
    let y = ops.reshape(x, [2, 2, 3]);
    for (let i = 0; i < 20; i++) y = ops.tanh(ops.add(ops.matmul(y, w), 0.5));
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
      ...tf,
      add(a, b) {
        most = Math.max(most, tf.memory().numTensors);
        return tf.add(a, b);
      },
    };
    const watcher = createInterpreter(watched, TENSORFLOW_JS);
    const peak = async (length: number): Promise<number> => {
      const program = await watcher.compile(
        trace({ x: [8] }, ({ x }) => {
          let y: ops.Value = x;
          for (let i = 0; i < length; i++) y = ops.add(ops.tanh(y), x);
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
      ...tf,
      div() {
        throw new TypeError('out of memory');
      },
    };
    const broken = createInterpreter(failing, TENSORFLOW_JS);
    const program = await broken.compile(trace({ x: [3] }, ({ x }) => ({ y: ops.div(ops.neg(ops.abs(x)), 2) })));
    const x = broken.tensor(new Float32Array(3), [3]);
    const before = tf.memory().numTensors;
    const run = program.run({ x });
    await expect(run).rejects.toThrow(EngineRunError);
    await expect(run).rejects.toThrow('out of memory');
    expect(tf.memory().numTensors).toBe(before);
  });
});

test('a tensor of another TensorFlow is refused', async () => {
  const other = createInterpreter({ ...tf }, TENSORFLOW_JS);
  const program = await engine.compile(trace({ x: [1] }, ({ x }) => ({ y: x })));
  await expect(program.run({ x: other.tensor(new Float32Array(1), [1]) })).rejects.toThrow('not a tensor of this');
});
