/** A process that webgpu-device.ts starts. It starts the WebGPU provider and tries tensors that are probably too large for it. */
import * as ort from 'onnxruntime-node';
import { trace } from '../graph.js';
import { add } from '../ops.js';
import { encodeOnnx } from './encode.js';
import { TRIED_BYTES, type WebgpuTrial } from './webgpu-device.js';

ort.env.logLevel = 'info'; // the log lists the devices that were found
const options: ort.InferenceSession.SessionOptions = {
  executionProviders: ['webgpu'],
  preferredOutputLocation: 'gpu-buffer',
  logSeverityLevel: 4,
};

/** Adds a column to a row: small inputs make a result of `bytes`. */
async function outer(bytes: number): Promise<void> {
  const size = Math.sqrt(bytes / 4);
  const graph = trace({ a: [size, 1], b: [1, size] }, ({ a, b }) => ({ y: add(a, b) }));
  const session = await ort.InferenceSession.create(encodeOnnx(graph), options);
  const vector = (dims: number[]): ort.Tensor => new ort.Tensor('float32', new Float32Array(size), dims);
  const results = await session.run({ a: vector([size, 1]), b: vector([1, size]) });
  for (const tensor of Object.values(results)) tensor.dispose();
}

const trial = async (): Promise<WebgpuTrial> => {
  const failed = (error: unknown): string => (error as Error).message;
  const failure = await outer(4).then(() => undefined, failed);
  if (failure !== undefined) return { failure, refusals: [] };
  const refusals: string[] = [];
  for (const bytes of TRIED_BYTES) {
    const refusal = await outer(bytes).then(() => '', failed);
    refusals.push(refusal);
    if (!refusal) break; // a larger one might be made too, and would take that much memory
  }
  return { refusals };
};

process.stdout.write(`${JSON.stringify(await trial())}\n`);
