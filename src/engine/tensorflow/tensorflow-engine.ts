/**
 * TensorFlow's native library through `@tensorflow/tfjs-node-gpu`. The package is optional and is loaded only when this
 * engine is created. `linkTensorflow` (link.ts) gives it a current TensorFlow.
 */
import { createRequire } from 'node:module';
import util from 'node:util';
import { EngineUnavailableError } from '../../errors.js';
import { cpuName, nvidiaName } from '../device-name.js';
import type { Engine, EngineOptions } from '../engine.js';
import { tensorCoresAllowed, withTensorCores } from '../tensor-cores.js';
import { createInterpreter, type TensorFlow } from './interpreter.js';

/** The npm package with TensorFlow's native backend. */
export const TENSORFLOW_PACKAGE = '@tensorflow/tfjs-node-gpu';
/** Without `--save-optional` npm treats the package as an optional peer dependency and does not install it. */
export const INSTALL_REMEDY = `Install it with "npm install --no-save --save-optional --ignore-scripts ${TENSORFLOW_PACKAGE}@4"`;
const LINK_REMEDY = 'run "mobe engines --link-tensorflow <site-packages>/tensorflow", or use --engine onnx-cpu';

/** Functions of the native backend that TensorFlow.js' common interface lacks. */
interface NativeTensorFlow extends TensorFlow {
  enableProdMode(): void;
  backend(): { readonly isUsingGpuDevice: boolean; readonly binding: { readonly TF_Version: string } };
}

/** TensorFlow on the last GPU that it sees, else on the CPU. Throws an `EngineUnavailableError` if the package does not load. */
export async function createTensorflowEngine({ threads }: EngineOptions): Promise<Engine> {
  setEnvironment(threads);
  const tf32 = tensorCoresAllowed();
  restoreRemovedUtility();
  const tf = load();
  tf.enableProdMode(); // no checks for NaN after every operation
  const { isUsingGpuDevice, binding } = tf.backend();
  const device = isUsingGpuDevice ? await nvidiaName(-1) : cpuName(); // TensorFlow.js uses the last GPU that it sees
  const engine = createInterpreter(tf, {
    name: 'tensorflow',
    kind: isUsingGpuDevice ? 'gpu' : 'cpu',
    device: `${device} (TensorFlow ${binding.TF_Version})`,
  });
  if (!isUsingGpuDevice) return engine;
  return tf32 ? withTensorCores(engine) : { ...engine, tf32 };
}

/** TensorFlow reads these once, when its library is loaded. Variables that the user has set are kept. */
function setEnvironment(threads: number): void {
  const defaults = {
    TF_FORCE_GPU_ALLOW_GROWTH: 'true', // by default it takes all of the GPU's memory at once
    TF_NUM_INTRAOP_THREADS: String(threads),
    TF_CPP_MIN_LOG_LEVEL: '1', // warnings and worse
  };
  for (const [name, value] of Object.entries(defaults)) process.env[name] ??= value;
}

/** tfjs-node calls a function of `util` that Node 23 removed. */
function restoreRemovedUtility(): void {
  const utilities = util as { isNullOrUndefined?: (value: unknown) => boolean };
  utilities.isNullOrUndefined ??= (value) => value === null || value === undefined;
}

function load(): NativeTensorFlow {
  try {
    return createRequire(import.meta.url)(TENSORFLOW_PACKAGE); // the package is CommonJS
  } catch (error) {
    throw new EngineUnavailableError('tensorflow', unavailable(error as NodeJS.ErrnoException));
  }
}

/** Why the package does not load, and what to do. */
function unavailable({ code, message }: NodeJS.ErrnoException): string {
  if (code === 'MODULE_NOT_FOUND' && message.startsWith(`Cannot find module '${TENSORFLOW_PACKAGE}'`))
    return `${TENSORFLOW_PACKAGE} is not installed. ${INSTALL_REMEDY}, then ${LINK_REMEDY}`;
  if (message.includes('native addon module'))
    return `${TENSORFLOW_PACKAGE} has no native part yet. Link it to a TensorFlow wheel: ${LINK_REMEDY}`;
  const [reason] = message.split('\n');
  return `${reason}. If TensorFlow was moved or updated, link it again: ${LINK_REMEDY}`;
}
