import * as errors from '../../src/errors.js';

/** An error that came as data from a thread or another machine, as the class it was there; undefined where it is none of ours. */
export function reviveError({ name, ...fields }: { name: string; message: string }): Error | undefined {
  const known = (errors as unknown as Record<string, { prototype: Error } | undefined>)[name];
  return known && Object.assign(Object.create(known.prototype) as Error, fields);
}

/** What failed at another machine as the class it was there, where it is one of ours: what is wrong there is wrong here. */
export async function revived<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer;
  } catch (error) {
    if (!(error instanceof errors.RemoteError)) throw error;
    const [name, message] = [error.remoteName, `${error.peer}: ${error.remoteMessage}`];
    throw reviveError({ name, message }) ?? error;
  }
}
