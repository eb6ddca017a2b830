import { ReadError } from '../../src/errors.js';
import type { Files } from '../../src/sources/files.js';

/** The error itself; of a read that failed because its file was changed, the `SourceChangedError` that says so. */
export async function blameSource(error: unknown, files: Files): Promise<unknown> {
  if (!(error instanceof ReadError)) return error;
  return files.checkUnchanged().then(
    () => error,
    (changed: Error) => changed,
  );
}
