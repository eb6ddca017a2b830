import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Outcome } from './sample.js';

/** Runs a task in a new folder and removes the folder. The task measures itself, without the removal. */
export async function inFolder(parent: string, task: (folder: string) => Promise<Outcome>): Promise<Outcome> {
  const folder = await mkdtemp(join(parent, 'mobe-bench-'));
  try {
    return await task(folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
