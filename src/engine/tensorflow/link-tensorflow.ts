/**
 * Builds the addon of `@tensorflow/tfjs-node-gpu` against the TensorFlow of a Python wheel. The package was published with
 * TensorFlow 2.9.1 for CUDA 11.2; a wheel brings a current CUDA. The addon uses TensorFlow's C interface, which the wheel's
 * `libtensorflow_cc.so.2` exports, and Node-API, which is the same in every Node. One compiler call builds its two files.
 */
import { execFile } from 'node:child_process';
import { access, constants, mkdir, rename, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { promisify } from 'node:util';
import {
  CompilationError,
  CompilerMissingError,
  EngineUnavailableError,
  LinkedTensorflowError,
  NotATensorflowWheelError,
  OutputNotWritableError,
  UnsupportedPlatformError,
} from '../../errors.js';
import type { EngineFacts } from '../engine.js';
import { probeEngine, works } from '../probe.js';
import { INSTALL_REMEDY, TENSORFLOW_PACKAGE } from './tensorflow-engine.js';

/** The result of linking. */
export interface LinkedTensorflow extends Pick<EngineFacts, 'device' | 'kind'> {
  /** The file that was built. */
  readonly addon: string;
}

/** Libraries that the addon is linked to. It finds them in the wheel, and they find CUDA's libraries there. */
const LIBRARIES = ['libtensorflow_cc.so.2', 'libtensorflow_framework.so.2'];
const HEADER = 'include/tensorflow/c/c_api.h';
const SOURCES = ['binding/tfjs_backend.cc', 'binding/tfjs_binding.cc'];
/** Node-API version. Every Node that this package supports has it. */
const NAPI_VERSION = 8;
/** Lines of the compiler's errors that are shown. The first ones name the cause. */
const MAX_COMPLAINT_LINES = 20;

const require = createRequire(import.meta.url);
const execute = promisify(execFile);
/** The error that `execute` rejects with. */
interface Failure extends Error {
  readonly stderr?: string;
}

/**
 * Builds the addon and tries it in a process of its own. It can be run again: only an addon that compiled replaces an older
 * one. Throws the errors of `src/errors/` that say what is missing or failed.
 * @param wheel the folder `<site-packages>/tensorflow`
 * @param onProgress gets one line for each step, and the lines that TensorFlow prints
 * @param tfjs the package's folder; default: the one that `require` finds
 */
export async function linkTensorflow(
  wheel: string,
  onProgress: (line: string) => void,
  tfjs?: string,
): Promise<LinkedTensorflow> {
  if (process.platform !== 'linux')
    throw new UnsupportedPlatformError('Linking TensorFlow', process.platform, 'Use --engine onnx-cpu there.');
  const tensorflow = path.resolve(wheel);
  await checkWheel(tensorflow);
  const folder = tfjs ?? packageFolder();
  const compiler = await findCompiler();
  const addon = path.join(folder, 'lib', `napi-v${NAPI_VERSION}`, 'tfjs_binding.node');
  onProgress(`compiling ${addon} with ${compiler.join(' ')}`);
  await compile(compiler, folder, tensorflow, addon);
  onProgress('loading it in a process of its own');
  const probe = await probeEngine('tensorflow', { threads: 1, onLine: onProgress }); // its lines say why there is no GPU
  if (!works(probe)) throw new LinkedTensorflowError(addon, probe.reason);
  return { addon, device: probe.device, kind: probe.kind };
}

async function checkWheel(tensorflow: string): Promise<void> {
  for (const file of [...LIBRARIES, HEADER]) {
    await access(path.join(tensorflow, file)).catch(() => {
      throw new NotATensorflowWheelError(tensorflow, file);
    });
  }
}

function packageFolder(): string {
  try {
    return path.dirname(require.resolve(`${TENSORFLOW_PACKAGE}/package.json`));
  } catch {
    throw new EngineUnavailableError('tensorflow', `${TENSORFLOW_PACKAGE} is not installed. ${INSTALL_REMEDY}.`);
  }
}

/** The compiler's command and its first arguments. CXX may hold both. */
async function findCompiler(): Promise<[string, ...string[]]> {
  const [command = 'c++', ...args] = process.env.CXX?.split(/\s+/).filter(Boolean) ?? [];
  try {
    await execute(command, [...args, '--version']);
  } catch (error) {
    throw new CompilerMissingError(command, (error as Error).message);
  }
  return [command, ...args];
}

async function compile(
  [compiler, ...first]: [string, ...string[]],
  tfjs: string,
  tensorflow: string,
  addon: string,
): Promise<void> {
  const nodeHeaders = path.join(path.dirname(require.resolve('node-api-headers/package.json')), 'include');
  const partial = `${addon}.partial`;
  const args = [
    ...first,
    ...['-shared', '-fPIC', '-O2', '-std=gnu++17', '-fno-exceptions', '-fno-rtti', `-DNAPI_VERSION=${NAPI_VERSION}`],
    ...['-w', `-I${nodeHeaders}`, `-I${path.join(tensorflow, 'include')}`],
    ...SOURCES.map((file) => path.join(tfjs, file)),
    ...LIBRARIES.map((file) => path.join(tensorflow, file)),
    // The path must be the wheel's own folder: its libraries look for CUDA beside the folder that they lie in.
    ...['-Xlinker', '-rpath', '-Xlinker', tensorflow],
    ...['-o', partial],
  ];
  try {
    await mkdir(path.dirname(addon), { recursive: true });
    await access(path.dirname(addon), constants.W_OK);
  } catch (error) {
    throw new OutputNotWritableError(path.dirname(addon), (error as Error).message);
  }
  try {
    await execute(compiler, args);
    await rename(partial, addon);
  } catch (error) {
    const { stderr, message } = error as Failure;
    const complaints = (stderr || message).split('\n').slice(0, MAX_COMPLAINT_LINES).join('\n');
    throw new CompilationError([compiler, ...args].join(' '), complaints);
  } finally {
    await rm(partial, { force: true });
  }
}
