/**
 * Runs the task for every item, in order, at most `lanes` at a time. After a failure, no further task starts. The first failure
 * is thrown when all running tasks have ended.
 */
export async function inLanes<T>(lanes: number, items: Iterable<T>, task: (item: T) => Promise<void>): Promise<void> {
  const coming = items[Symbol.iterator]();
  let failure: { readonly error: unknown } | undefined;
  const lane = async (): Promise<void> => {
    for (let next = coming.next(); !next.done && !failure; next = coming.next()) {
      try {
        await task(next.value);
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  if (failure) throw failure.error;
}
