/** Checks files against their SHA-256 while they are read. */
import { createHash, type Hash } from 'node:crypto';
import { DamagedDownloadError } from '../../errors.js';
import type { WebFile } from './web-place.js';

interface Progress {
  readonly hash: Hash;
  /** Reads up to here have begun, without a gap from the first byte on. */
  claimed: number;
  /** The last of these reads. It never fails. */
  last: Promise<void>;
  /** False after a read that failed: its bytes are missing from the hash. */
  complete: boolean;
}

/** Runs a read. Throws `DamagedDownloadError` with the last byte of a file whose content is not what its server says. */
export type CheckedRead = (
  file: WebFile,
  position: number,
  target: Uint8Array,
  fill: () => Promise<void>,
) => Promise<void>;

/**
 * Hashes the files that have a `sha256` and are read from their first byte to their last in order; reads that follow each other
 * may run at the same time. SHA-256 has no other order, so a file that is read in another one is not checked. A read waits for
 * the one before it.
 * @param nameOf the name of a file in messages
 */
export function checkWhole(nameOf: (file: WebFile) => string): CheckedRead {
  const files = new Map<WebFile, Progress>();
  return async (file, position, target, fill) => {
    if (file.sha256 === undefined) return fill();
    const known = files.get(file);
    const progress = known ?? { hash: createHash('sha256'), claimed: 0, last: Promise.resolve(), complete: true };
    if (!known) files.set(file, progress);
    const { claimed, last } = progress;
    const end = position + target.byteLength;
    if (position > claimed || end <= claimed) return fill();
    progress.claimed = end;
    const read = async (): Promise<void> => {
      try {
        await fill();
      } catch (error) {
        progress.complete = false;
        if (files.get(file) === progress) files.delete(file); // it may be read again from its start
        throw error;
      }
      await last;
      if (!progress.complete) return;
      progress.hash.update(target.subarray(claimed - position));
      if (end < file.bytes) return;
      files.delete(file);
      const found = progress.hash.digest('hex');
      if (found !== file.sha256) throw new DamagedDownloadError(nameOf(file), file.sha256 as string, found);
    };
    const reading = read();
    progress.last = reading.catch(() => {});
    return reading;
  };
}
