/** How many names a sentence has, at most. */
const MOST = 3;

/** "a, b, c, …": some of the names, for a sentence that counts them all. */
export const listNames = (names: readonly string[]): string =>
  names.slice(0, MOST).join(', ') + (names.length > MOST ? ', …' : '');

/** "1 file", "3 files". */
export const count = (number: number, noun: string): string => `${number} ${noun}${number === 1 ? '' : 's'}`;
