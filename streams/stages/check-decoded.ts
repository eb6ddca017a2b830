import { type Copy, copyBytes } from '../../src/conversion/conversion-plan.js';
import { InterruptedError } from '../../src/errors.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { RunHooks } from '../run-options.js';
import { passThrough } from './pass-through.js';

/**
 * Decodes once, before anything is written, all that will be decoded and not factorised: a NaN, or a value that the output
 * dtype cannot hold, is then named at the start and not after hours. What is copied as bytes is no one's numbers here.
 */
export async function checkDecoded(
  copies: readonly Copy[],
  reader: RangeReader,
  { onProgress, signal }: RunHooks,
): Promise<void> {
  const decoded = copies.filter(({ decode }) => decode);
  if (decoded.length === 0) return;
  const bytes = decoded.reduce((sum, copy) => sum + copyBytes(copy), 0);
  onProgress?.({ kind: 'phase', phase: 'check', groups: 0, bytes });
  let done = 0;
  for await (const { data } of passThrough(decoded, reader)) {
    if (signal?.aborted) throw new InterruptedError();
    done += data.byteLength;
    onProgress?.({ kind: 'bytes', bytes: done });
  }
}
