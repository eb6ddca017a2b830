/**
 * Does the task for every item, in their order, so many at a time. The first failure is thrown once no task runs any more; no
 * other is begun after it.
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
