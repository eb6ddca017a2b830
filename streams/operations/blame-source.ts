import { ReadError } from '../../src/errors.js';
import type { Files } from '../../src/sources/files.js';

/** Returns the error, or a `SourceChangedError` if it is a `ReadError` of a file that has changed since it was opened. */
export async function blameSource(error: unknown, files: Files): Promise<unknown> {
  if (!(error instanceof ReadError)) return error;
  return files.checkUnchanged().then(
    () => error,
    (changed: Error) => changed,
  );
}
