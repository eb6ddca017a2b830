import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { type Outcome, startTimer } from './sample.js';

/** Index and headers. */
export async function openModel(model: string): Promise<Outcome> {
  const stop = startTimer();
  const { shards, files } = await openCheckpoint(model);
  const time = stop();
  await files.close();
  // The index aside, which only names the tensors again.
  return { bytes: shards.reduce((sum, { tensors, bytes }) => sum + (tensors[0]?.start ?? bytes), 0), ...time };
}
