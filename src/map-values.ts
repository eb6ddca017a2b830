/** Returns an object with the same keys and the values that `change` returns. */
export const mapValues = <V, R>(
  object: Readonly<Record<string, V>>,
  change: (value: V, key: string) => R,
): Record<string, R> => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value, key)]));
