/** Runs other programs that copy checkpoints, and measures them from start to end. */
import { execFile } from 'node:child_process';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { inFolder } from './in-folder.js';
import { type Outcome, startTimer } from './sample.js';
import type { Command, SampleOfModel } from './task.js';

const execute = promisify(execFile);

/** A Python with `safetensors` and `torch` (NumPy has no bf16). */
export const PYTHON = process.env.PYTHON ?? 'python3';

/** Loads every tensor and saves it again, file by file. Prints the seconds and the peak memory in KiB. */
const PYTHON_COPY = `
import os, resource, sys, time
from safetensors.torch import load_file, save_file
target, files = sys.argv[1], sys.argv[2:]
started = time.perf_counter()
for file in files:
    save_file(load_file(file), os.path.join(target, os.path.basename(file)))
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
`;

/** Why a command cannot run here; undefined if it can. */
export async function missing(command: Command): Promise<string | undefined> {
  const probe: readonly [string, string[]] =
    command === 'python' ? [PYTHON, ['-c', 'import torch, safetensors.torch']] : [command, ['--version']];
  try {
    await execute(...probe);
    return undefined;
  } catch (error) {
    const { code, stderr } = error as { code?: string | number; stderr?: string };
    return code === 'ENOENT' ? `there is no ${probe[0]}` : (stderr?.trim().split('\n').at(-1) ?? String(code));
  }
}

/** Copies a source's shards with a command. `sync` also brings the copies to the disk. Throws the command's error. */
export const runCommand = (command: Command, source: SampleOfModel, parent: string, sync: boolean): Promise<Outcome> =>
  inFolder(parent, async (folder) => {
    const { bytes, shards } = source;
    const from = shards.map((shard) => join(source.folder, shard));
    const to = shards.map((shard) => join(folder, shard));
    const stop = startTimer();
    let reported: { seconds?: number; peakRssBytes?: number } = {};
    if (command === 'cp' || command === 'sha256sum') await execute('cp', [...from, folder]);
    else if (command === 'dd')
      for (const [i, file] of from.entries()) await execute('dd', [`if=${file}`, `of=${to[i]}`, 'bs=8M']);
    else {
      const { stdout } = await execute(PYTHON, ['-c', PYTHON_COPY, folder, ...from]);
      const [seconds, kibibytes] = stdout.trim().split(' ').map(Number) as [number, number];
      reported = { seconds, peakRssBytes: kibibytes * 1024 }; // without the start of Python and the loading of torch
    }
    const copied = stop();
    if (sync) await Promise.all(to.map(syncFile));
    if (command === 'sha256sum') await execute('sha256sum', to);
    const { seconds, cpuSeconds } = stop();
    const { seconds: own = copied.seconds, ...peak } = reported;
    return { bytes, besideLoop: true, ...peak, cpuSeconds, seconds: own + seconds - copied.seconds };
  });

async function syncFile(file: string): Promise<void> {
  const handle = await open(file, 'r+');
  await handle.sync().finally(() => handle.close());
}
