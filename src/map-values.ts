/** An object with the same keys, and what `change` makes of each value. */
export const mapValues = <V, R>(
  object: Readonly<Record<string, V>>,
  change: (value: V, key: string) => R,
): Record<string, R> => Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value, key)]));
