import { CONFIG_FILE, fingerprint, INDEX_FILE } from '../../src/checkpoint/open-checkpoint.js';
import { InterruptedError } from '../../src/errors.js';
import { fileIn, PIPE } from '../../src/location.js';
import { READ_BYTES } from '../../src/sources/files.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { RunOptions } from '../run-options.js';
import { type OutputPlace, openOutput } from './open-output.js';

/** Writes a checkpoint as it is, file by file, to standard output or to `mobe receive` elsewhere. */
export async function streamCheckpoint(model: Source, to: OutputPlace = PIPE, run: RunOptions = {}): Promise<number> {
  const source = await openSource(model, run);
  const { files, folder } = source;
  const held = await files.list(folder);
  const total = held.reduce((sum, { bytes }) => sum + bytes, 0);
  const wanted = { kind: 'copy' as const, sourceFingerprint: await fingerprint(source), settings: {} };
  const opened = await openOutput(to, { wanted, neededBytes: total, inputs: [folder] }, run);
  if ('done' in opened) return total;
  const { output } = opened;
  run.onProgress?.({ kind: 'phase', phase: 'copy', groups: 0, bytes: total });
  let sent = 0;
  try {
    for (const { path, bytes } of held) {
      const content = async function* (): AsyncGenerator<Uint8Array> {
        for (let start = 0; start < bytes; start += READ_BYTES) {
          if (run.signal?.aborted) throw new InterruptedError();
          const end = Math.min(bytes, start + READ_BYTES);
          yield await files.readRange({ file: fileIn(folder, path), start, end });
          sent += end - start;
          run.onProgress?.({ kind: 'bytes', bytes: sent });
        }
      };
      await output.writeFile(path, bytes, content());
    }
    await output.commit([INDEX_FILE, CONFIG_FILE]);
  } catch (error) {
    await output.abandon();
    throw error;
  } finally {
    await files.close();
  }
  return total;
}
