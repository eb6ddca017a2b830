import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { type Outcome, startTimer } from './sample.js';

/** Reads a checkpoint's index and headers. */
export async function openModel(model: string): Promise<Outcome> {
  const stop = startTimer();
  const { shards, files } = await openCheckpoint(model);
  const time = stop();
  await files.close();
  // The index is not counted. It only repeats the tensors' names.
  return { bytes: shards.reduce((sum, { tensors, bytes }) => sum + (tensors[0]?.start ?? bytes), 0), ...time };
}
