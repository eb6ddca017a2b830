/** Names of devices, from the operating system and from drivers. */
import { execFile } from 'node:child_process';
import { cpus } from 'node:os';
import { promisify } from 'node:util';

/** The processor's model, as the system names it. */
export const cpuName = (): string => cpus()[0]?.model.trim() || `${process.arch} processor`;

/** Name of the first (0) or the last (-1) NVIDIA GPU that CUDA may use, from `nvidia-smi`. */
export async function nvidiaName(position: 0 | -1): Promise<string> {
  const chosen = process.env.CUDA_VISIBLE_DEVICES?.split(',').at(position);
  const query = ['--query-gpu=name', '--format=csv,noheader', ...(chosen ? [`--id=${chosen}`] : [])];
  try {
    const { stdout } = await promisify(execFile)('nvidia-smi', query, { timeout: 10_000 });
    return stdout.trim().split('\n').at(position) || 'NVIDIA GPU';
  } catch {
    return 'NVIDIA GPU';
  }
}
