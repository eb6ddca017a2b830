/** The most names that a sentence lists. */
const MOST = 3;

/** "a, b, c, …": the first few names, for a sentence that has the number of all. */
export const listNames = (names: readonly string[]): string =>
  names.slice(0, MOST).join(', ') + (names.length > MOST ? ', …' : '');

/** "1 file", "3 files". */
export const count = (number: number, noun: string): string => `${number} ${noun}${number === 1 ? '' : 's'}`;
