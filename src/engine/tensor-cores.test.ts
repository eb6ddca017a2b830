import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { PrecisionError } from '../errors.js';
import { createEngine } from './create-engine.js';
import { trace } from './graph.js';
import { matmul } from './ops.js';
import {
  allowTensorCores,
  choosePrecision,
  simulateTensorCores,
  tensorCoresAllowed,
  withTensorCores,
} from './tensor-cores.js';

beforeEach(() => vi.stubEnv('NVIDIA_TF32_OVERRIDE', undefined));
afterEach(() => vi.unstubAllEnvs());

test('TF32 is forbidden unless a fit allows it before the first engine starts', () => {
  expect(tensorCoresAllowed()).toBe(false);
  expect(process.env.NVIDIA_TF32_OVERRIDE).toBe('0');
  allowTensorCores(); // libraries may have read the variable by now
  expect(tensorCoresAllowed()).toBe(false);
});

test('TF32 that was allowed stays allowed', () => {
  allowTensorCores();
  expect(tensorCoresAllowed()).toBe(true);
  expect(process.env.NVIDIA_TF32_OVERRIDE).toBe('1');
});

test("the user's variable decides", () => {
  vi.stubEnv('NVIDIA_TF32_OVERRIDE', '0');
  allowTensorCores();
  expect(tensorCoresAllowed()).toBe(false);
  vi.stubEnv('NVIDIA_TF32_OVERRIDE', '1');
  expect(tensorCoresAllowed()).toBe(true);
});

test('the precision is TF32 where an engine has it, unless f32 is asked for', () => {
  const facts = { name: 'tensorflow', device: 'a GPU', kind: 'gpu' } as const;
  expect(choosePrecision({ ...facts, tf32: true }, undefined)).toBe('tf32');
  expect(choosePrecision({ ...facts, tf32: true }, 'f32')).toBe('f32');
  expect(choosePrecision({ ...facts, tf32: false }, undefined)).toBe('f32');
  expect(choosePrecision(facts, undefined)).toBe('f32');
  expect(() => choosePrecision({ ...facts, tf32: false }, 'tf32')).toThrow(PrecisionError);
  expect(() => choosePrecision({ ...facts, tf32: false }, 'tf32')).toThrow('Unset it');
  expect(() => choosePrecision(facts, 'tf32')).toThrow('tensorflow on a GPU multiplies in f32 alone');
});

test('an engine multiplies in TF32 only for programs that ask for it', async () => {
  const cpu = await createEngine('onnx-cpu', { threads: 1 });
  expect(cpu.tf32).toBeUndefined();
  const graph = trace({ x: [1, 1] }, ({ x }) => ({ y: matmul(x, x) }));
  const squared = async (engine: typeof cpu, precision?: 'f32' | 'tf32'): Promise<number> => {
    const program = await engine.compile(graph, precision);
    const { y } = await program.run({ x: engine.tensor(Float32Array.of(1 + 2 ** -12), [1, 1]) });
    return (await engine.read(y as never))[0] as number;
  };
  const exact = Math.fround((1 + 2 ** -12) ** 2);
  const simulated = simulateTensorCores(cpu);
  expect(await squared(simulated, 'tf32')).toBe(1);
  expect(await squared(simulated, 'f32')).toBe(exact);
  expect(await squared(simulated)).toBe(exact);
  expect(await squared(withTensorCores(cpu), 'tf32')).toBe(exact);
  expect(await squared(cpu, 'tf32')).toBe(exact);
});
