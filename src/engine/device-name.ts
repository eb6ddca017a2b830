/** What systems and drivers call the devices there are. */
import { execFile } from 'node:child_process';
import { cpus } from 'node:os';
import { promisify } from 'node:util';

/** The processor's model, as the system names it. */
export const cpuName = (): string => cpus()[0]?.model.trim() || `${process.arch} processor`;

/** Of the NVIDIA GPUs that CUDA may use the first (0) or the last (-1), as the driver's own tool names it. */
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
