/**
 * Finds out which device the WebGPU provider runs on. ONNX Runtime does not tell. So a short-lived process starts the
 * provider, and the log of the Vulkan loader and of WebGPU's validation is read. A driver that crashes ends only that process.
 */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { EngineUnavailableError } from '../../errors.js';
import { cpuName } from '../device-name.js';
import type { EngineFacts } from '../engine.js';

const TIMEOUT_MS = 60_000;
/** Shaders index elements with 32-bit words, and most drivers allow no more bytes either. */
const MOST_BYTES = 2 ** 32;

const REMEDY =
  "Install the graphics adapter's driver (on Linux: its Vulkan driver and libvulkan1), or use --engine onnx-cpu";

/** The adapter that WebGPU uses. */
export type WebgpuDevice = Pick<EngineFacts, 'device' | 'kind'> & { readonly maxTensorBytes: number };

/** Sizes of the tensors that the child process tries to make, bytes. Few adapters allow the first as one buffer, fewer the second. */
export const TRIED_BYTES = [2 ** 32, 2 ** 34] as const;

/** The child process's answer on stdout, as JSON. */
export interface WebgpuTrial {
  /** Why the provider did not start. */
  readonly failure?: string;
  /** Why tensors of `TRIED_BYTES` could not be made; an empty text for one that could. */
  readonly refusals: readonly string[];
}

/** Starts the WebGPU provider in a process of its own. Throws an `EngineUnavailableError` if it does not start. */
export async function describeWebgpu(): Promise<WebgpuDevice> {
  const { trial, log } = await runTrial();
  if (!trial) throw unavailable('the graphics runtime ended the process that tried it');
  if (trial.failure !== undefined) throw unavailable(explainFailure(trial.failure));
  return { ...parseAdapter(log), maxTensorBytes: parseTensorLimit(trial.refusals, log) };
}

const unavailable = (reason: string): EngineUnavailableError =>
  new EngineUnavailableError('onnx-webgpu', `${reason}. ${REMEDY}`);

function explainFailure(message: string): string {
  if (/unsupported: 'webgpu'/.test(message)) return "ONNX Runtime's package has no WebGPU for this platform";
  const [, reason] = /(Failed to get a WebGPU \w+[^\n]*)/.exec(message) ?? [];
  return reason ?? message.trim();
}

function runTrial(): Promise<{ trial: WebgpuTrial | undefined; log: string }> {
  const script = fileURLToPath(new URL('./webgpu-device-child.js', import.meta.url));
  const env = { ...process.env, VK_LOADER_DEBUG: 'all' };
  return new Promise((resolve) => {
    execFile(process.execPath, [script], { env, timeout: TIMEOUT_MS, maxBuffer: 2 ** 26 }, (_, stdout, log) => {
      const line = stdout.split('\n').find((text) => text.startsWith('{'));
      resolve({ trial: line === undefined ? undefined : (JSON.parse(line) as WebgpuTrial), log });
    });
  });
}

const SOFTWARE = /swiftshader|llvmpipe|lavapipe|softpipe|basic render|\bwarp\b/i;

/** The adapter in use, from the log of the Vulkan loader or, without Vulkan, from ONNX Runtime's list of devices. */
export function parseAdapter(log: string): Pick<WebgpuDevice, 'device' | 'kind'> {
  const [, used] = /Using "(.+)" with driver: "/.exec(log) ?? [];
  if (used !== undefined) return { device: used, kind: SOFTWARE.test(used) ? 'cpu' : 'gpu' };
  for (const [, vendor, metadata = ''] of log.matchAll(
    /OrtHardwareDevice \{.*vendor:([^,]*), type:1, metadata: (.*)\}/g,
  )) {
    const name = /Description=([^,\]]+)/.exec(metadata)?.[1] ?? `${vendor} graphics adapter`;
    if (!SOFTWARE.test(name)) return { device: name, kind: 'gpu' };
  }
  // Apple's adapters are part of the processor and always hardware.
  if (process.platform === 'darwin') return { device: `${cpuName()} (Metal)`, kind: 'gpu' };
  return { device: 'unknown adapter', kind: 'cpu' };
}

/** Most bytes of a tensor that lies in one buffer and is bound at once, from the errors that `TRIED_BYTES` led to. */
export function parseTensorLimit(refusals: readonly string[], log: string): number {
  const limits = refusals.map((text, i) => {
    // A tensor above the binding limit is bound in pieces. The trial's two operands take two more bindings.
    const bound = Number(/Too many storage buffers in shader\. Current: (\d+)/.exec(text)?.[1] ?? 0);
    return bound > 2 ? Math.floor((TRIED_BYTES[i] ?? MOST_BYTES) / (bound - 2)) : MOST_BYTES;
  });
  for (const [, bytes] of [...refusals, log].join('\n').matchAll(/max buffer size limit \((\d+)\)/g))
    limits.push(Number(bytes));
  return Math.min(MOST_BYTES, ...limits);
}
