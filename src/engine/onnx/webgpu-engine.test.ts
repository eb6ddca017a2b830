import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as ort from 'onnxruntime-node';
import { describe, expect, test } from 'vitest';
import { availableEngines } from '../../../fixtures/engines.js';
import { temporaryFolder } from '../../../fixtures/temporary-folder.js';
import { EngineRunError } from '../../errors.js';
import type { Targets } from '../../methods/method.js';
import { solveAdam } from '../../methods/mobe/adam.js';
import type { Problem, SolverOptions } from '../../methods/mobe/problem.js';
import { createReconstruction } from '../../methods/mobe/reconstruct.js';
import { createRefit } from '../../methods/mobe/refit.js';
import { solveVarpro } from '../../methods/mobe/varpro.js';
import type { Engine, EngineTensor } from '../engine.js';
import { type Graph, trace } from '../graph.js';
import { add, elements, matmul } from '../ops.js';
import { encodeOnnx } from './encode.js';
import { parseAdapter, parseTensorLimit } from './webgpu-device.js';
import { WEBGPU_DIALECT, WEBGPU_OPTIONS } from './webgpu-engine.js';

const engines = await availableEngines();
const cpu = engines.find(({ name }) => name === 'onnx-cpu') as Engine;
const webgpu = engines.find(({ name }) => name === 'onnx-webgpu');
const root = temporaryFolder();

/** Every graph that is compiled to fit and write groups, with each solver and each activation. */
async function solverGraphs(): Promise<Graph[]> {
  const graphs: Graph[] = [];
  const spy: Engine = {
    ...cpu,
    compile: (graph) => {
      graphs.push(graph);
      return cpu.compile(graph);
    },
  };
  const silu: Problem = { experts: 2, rows: 6, cols: 20, bases: 2, rank: 6, activation: 'silu' };
  const tanh: Problem = { ...silu, activation: 'tanh' };
  const targets: Targets = {
    read(expert, target) {
      for (let i = 0; i < target.length; i++) target[i] = Math.sin(i + expert);
    },
  };
  const options: SolverOptions = {
    steps: 1,
    learningRate: undefined,
    batchExperts: 2,
    holdTargets: true,
    seed: 1,
    label: 'test group',
  };
  const solution = await solveVarpro(spy, silu, targets, options);
  await (await createRefit(spy, silu, solution)).dispose();
  await solveAdam(spy, tanh, targets, options, 1);
  await (await createReconstruction(spy, tanh, solution)).dispose();
  return graphs;
}

/** Runs a graph once and returns the provider that ran each node, from the runtime's profile. */
async function placements(graph: Graph, folder: string): Promise<string[]> {
  mkdirSync(folder);
  const session = await ort.InferenceSession.create(encodeOnnx(graph, WEBGPU_DIALECT), {
    ...WEBGPU_OPTIONS,
    preferredOutputLocation: 'gpu-buffer',
    enableProfiling: true,
    profileFilePrefix: join(folder, 'profile'),
  });
  const feeds = [...graph.inputs].map(([name, { shape }]) => [
    name,
    new ort.Tensor('float32', new Float32Array(elements(shape)).fill(0.5), shape),
  ]);
  const used = feeds.filter(([name]) => session.inputNames.includes(name as string));
  const outputs = await session.run(Object.fromEntries(used));
  for (const tensor of Object.values(outputs)) tensor.dispose();
  session.endProfiling();
  await session.release();
  const [file] = readdirSync(folder);
  const events = JSON.parse(readFileSync(join(folder, file as string), 'utf8')) as Array<{
    cat: string;
    name: string;
    args?: { provider?: string };
  }>;
  return events
    .filter(({ cat, name }) => cat === 'Node' && name.endsWith('_kernel_time'))
    .map(({ name, args }) => `${args?.provider} ${name}`);
}

describe.skipIf(!webgpu)('on a graphics device', () => {
  test('every node of every solver graph runs on it', async () => {
    const graphs = await solverGraphs();
    expect(graphs.length).toBeGreaterThanOrEqual(9);
    for (const [i, graph] of graphs.entries()) {
      const nodes = await placements(graph, join(root, String(i)));
      expect(nodes.length).toBeGreaterThan(0);
      expect(nodes.filter((node) => !node.startsWith('WebGpuExecutionProvider'))).toEqual([]);
    }
  });

  test('a node that it has no kernel for is refused, not run on the CPU', async () => {
    const graph = trace({ a: [4, 3], b: [4, 5] }, ({ a, b }) => ({ y: matmul(a, b, { transposeA: true }) }));
    await expect(ort.InferenceSession.create(encodeOnnx(graph), WEBGPU_OPTIONS)).rejects.toThrow('fallback to CPU');
    await (await ort.InferenceSession.create(encodeOnnx(graph, WEBGPU_DIALECT), WEBGPU_OPTIONS)).release();
  });

  test('a tensor that it cannot hold is told, and it works on', async () => {
    const engine = webgpu as Engine;
    const outer = async (size: number): Promise<number | undefined> => {
      const shapes = { a: [size, 1], b: [1, size] };
      const program = await engine.compile(trace(shapes, ({ a, b }) => ({ y: add(a, b) })));
      const ones = (shape: number[]) => engine.tensor(new Float32Array(size).fill(1), shape);
      const { y } = (await program.run({ a: ones(shapes.a), b: ones(shapes.b) })) as { y: EngineTensor };
      const [first] = await engine.read(y);
      y.dispose();
      return first;
    };
    const refused = outer(2 ** 17); // 64 GiB
    await expect(refused).rejects.toThrow(EngineRunError);
    await expect(refused).rejects.toThrow(/--batch-experts.*onnx-cpu/);
    expect(await outer(4)).toBe(2);
  });

  test('its limit is known', () => {
    expect(webgpu?.maxTensorBytes).toBeGreaterThanOrEqual(2 ** 27); // what WebGPU guarantees
    expect(webgpu?.maxTensorBytes).toBeLessThanOrEqual(2 ** 32);
    if (webgpu?.device.startsWith('SwiftShader')) expect(webgpu.maxTensorBytes).toBe(2 ** 30);
  });
});

describe('the adapter is told from the logs:', () => {
  const vulkan = (device: string) =>
    `INFO | DRIVER:   [0] another\n   Using "${device}" with driver: "/usr/lib/x.so"\n`;
  const found = (type: number, metadata: string) =>
    `[I:onnxruntime, x.cc:34 operator()] Discovered OrtHardwareDevice {vendor_id:0x10de, device_id:0x1, vendor:NVIDIA, type:${type}, metadata: [${metadata}]}\n`;

  test.each<[string, string, 'cpu' | 'gpu']>([
    ['NVIDIA GeForce RTX 4090', 'NVIDIA GeForce RTX 4090', 'gpu'],
    ['SwiftShader Device (Subzero)', 'SwiftShader Device (Subzero)', 'cpu'],
    ['llvmpipe (LLVM 15.0.6, 256 bits)', 'llvmpipe (LLVM 15.0.6, 256 bits)', 'cpu'],
  ])('Vulkan: %s', (name, device, kind) => expect(parseAdapter(vulkan(name))).toEqual({ device, kind }));

  test('elsewhere: hardware that was found', () => {
    const log =
      found(0, '') +
      found(1, 'Description=Microsoft Basic Render Driver, LUID=1') +
      found(1, 'Description=NVIDIA A10, LUID=2');
    expect(parseAdapter(log)).toEqual({ device: 'NVIDIA A10', kind: 'gpu' });
    expect(parseAdapter(found(1, ''))).toEqual({ device: 'NVIDIA graphics adapter', kind: 'gpu' });
  });

  test.skipIf(process.platform === 'darwin')('what is not known to be hardware is no GPU', () => {
    expect(parseAdapter('')).toEqual({ device: 'unknown adapter', kind: 'cpu' });
    expect(parseAdapter(found(0, '')).kind).toBe('cpu');
  });
});

describe('the largest tensor is told from refusals:', () => {
  const buffer = (bytes: number) => `Buffer size (4294967296) exceeds the max buffer size limit (${bytes}).`;
  const bindings = (count: number) => `Too many storage buffers in shader. Current: ${count}, Max is 12`;
  test.each<[string, string[], string, number]>([
    ['none', [''], '', 2 ** 32],
    ['a buffer', [buffer(2 ** 31), ''], '', 2 ** 31],
    ['a buffer, in the log', ['invalid'], buffer(2 ** 31), 2 ** 31],
    ['bindings of the first', [bindings(34), bindings(130)], '', 2 ** 27],
    ['bindings of the second', [buffer(2 ** 31), bindings(18)], '', 2 ** 30],
  ])('%s', (_, refusals, log, bytes) => expect(parseTensorLimit(refusals, log)).toBe(bytes));
});
