import * as errors from '../../src/errors.js';

/**
 * Restores the class of an error that came as data from a thread or another machine; undefined if the class is not from
 * src/errors/.
 */
export function reviveError({ name, ...fields }: { name: string; message: string }): Error | undefined {
  const known = (errors as unknown as Record<string, { prototype: Error } | undefined>)[name];
  return known && Object.assign(Object.create(known.prototype) as Error, fields);
}

/** Awaits an answer of another machine. Rethrows its error as the class it had there, if that class is from src/errors/. */
export async function revived<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    if (!(error instanceof errors.RemoteError)) throw error;
    const [name, message] = [error.remoteName, `${error.peer}: ${error.remoteMessage}`];
    throw reviveError({ name, message }) ?? error;
  }
}
