import { type Inspection, inspectCheckpoint } from '../../src/conversion/inspection.js';
import type { PeerOptions } from '../machines/peer-options.js';
import { openSource, type Source } from '../machines/remote-files.js';

/** What is in a checkpoint. Reads headers only; throws an `InputError` where it is damaged. */
export const inspect = async (model: Source, peers: PeerOptions = {}): Promise<Inspection> =>
  inspectCheckpoint(await openSource(model, { peers }));
