/**
 * ONNX Runtime's WebGPU provider: any graphics adapter through Vulkan, Metal or Direct3D 12. Results stay in the device's
 * memory, and later runs read them there. A session of its own copies a tensor back to the host, because `getData` of a
 * device tensor crashes the process.
 */
import * as ort from 'onnxruntime-node';
import { EngineError } from '../../errors.js';
import type { Engine, EngineTensor, Program } from '../engine.js';
import { type Graph, trace } from '../graph.js';
import { matchInputs } from '../match-inputs.js';
import { type Dialect, outputName } from './encode.js';
import { DEVICE_OPTIONS, type Session, Sessions } from './sessions.js';
import { describeWebgpu } from './webgpu-device.js';

/** The provider has no kernel for products with transposed operands. */
export const WEBGPU_DIALECT: Dialect = { transposingMatmul: false };

/** Session options of the WebGPU provider. */
export const WEBGPU_OPTIONS: ort.InferenceSession.SessionOptions = {
  ...DEVICE_OPTIONS,
  executionProviders: ['webgpu'],
  graphOptimizationLevel: 'all',
};

/** Copies tensors between host and device by running the program x → x. */
class Transfers {
  constructor(
    private readonly toDevice: Sessions,
    private readonly toHost: Sessions,
  ) {}

  upload(tensor: ort.Tensor): Promise<ort.Tensor> {
    return copy(this.toDevice, tensor);
  }

  async download(tensor: ort.Tensor): Promise<Float32Array> {
    return (await copy(this.toHost, tensor)).data as Float32Array;
  }
}

async function copy(sessions: Sessions, tensor: ort.Tensor): Promise<ort.Tensor> {
  const session = await sessions.open(trace({ x: tensor.dims }, ({ x }) => ({ x })));
  const { [outputName('x')]: result } = await session.run({ x: tensor });
  await session.release();
  return result as ort.Tensor;
}

/**
 * A tensor in host memory or on the device. The first run reads it from the host. Before a second run it moves to the device:
 * constants are uploaded once, and values that are used once leave no buffer behind.
 */
class DeviceTensor implements EngineTensor {
  private fed = false;

  constructor(
    private tensor: ort.Tensor | undefined,
    private readonly transfers: Transfers,
    readonly shape: readonly number[],
  ) {}

  async feed(): Promise<ort.Tensor> {
    if (this.live.location === 'cpu' && this.fed) this.tensor = await this.transfers.upload(this.live);
    this.fed = true;
    return this.live;
  }

  async read(): Promise<Float32Array> {
    return this.live.location === 'cpu' ? (this.live.data as Float32Array) : this.transfers.download(this.live);
  }

  dispose(): void {
    if (this.tensor?.location === 'gpu-buffer') this.tensor.dispose();
    this.tensor = undefined;
  }

  private get live(): ort.Tensor {
    if (!this.tensor) throw new EngineError('a tensor was used after it was disposed of');
    return this.tensor;
  }
}

function unwrap(tensor: EngineTensor, name: string): DeviceTensor {
  if (tensor instanceof DeviceTensor) return tensor;
  throw new EngineError(`"${name}" is not a tensor of this engine`);
}

class DeviceProgram implements Program {
  constructor(
    private readonly session: Session,
    private readonly graph: Graph,
    private readonly transfers: Transfers,
  ) {}

  async run(inputs: Readonly<Record<string, EngineTensor>>): Promise<Record<string, EngineTensor>> {
    const feeds: Record<string, ort.Tensor> = {};
    for (const [name, tensor] of matchInputs(this.graph, inputs)) feeds[name] = await unwrap(tensor, name).feed();
    const outputs = await this.session.run(feeds);
    return Object.fromEntries(
      [...this.graph.outputs].map(([name, { shape }]) => [
        name,
        new DeviceTensor(outputs[outputName(name)], this.transfers, shape),
      ]),
    );
  }

  dispose(): Promise<void> {
    return this.session.release();
  }
}

/** ONNX Runtime's WebGPU provider. Throws an `EngineUnavailableError` if it does not start. */
export async function createOnnxWebgpuEngine(): Promise<Engine> {
  const facts = { name: 'onnx-webgpu', ...(await describeWebgpu()) };
  const onDevice = new Sessions(facts, { ...WEBGPU_OPTIONS, preferredOutputLocation: 'gpu-buffer' }, WEBGPU_DIALECT);
  const transfers = new Transfers(onDevice, new Sessions(facts, WEBGPU_OPTIONS, WEBGPU_DIALECT));
  return {
    ...facts,
    compile: async (graph) => new DeviceProgram(await onDevice.open(graph), graph, transfers),
    tensor: (data, shape) => new DeviceTensor(new ort.Tensor('float32', data, shape), transfers, shape),
    read: (tensor) => unwrap(tensor, 'read').read(),
  };
}
