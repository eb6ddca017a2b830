/** Chooses the sequences of a record from the tokens of texts. */
import { OptionError } from '../errors.js';
import { createRandom } from '../linalg/random.js';

/** Chosen sequences. */
export interface ChosenSequences {
  readonly sequences: number;
  readonly length: number;
  /** (sequences, length) */
  readonly tokens: Int32Array;
  /** Sequences of this length that the texts have. */
  readonly available: number;
}

/**
 * Cuts each text into consecutive windows of `length` tokens and takes as many of them as `wanted` tokens need, at random. More
 * tokens of the same seed include those of fewer. A rest that fills no window is left out; if no text fills one, the windows are
 * as long as the longest text.
 * @param texts the tokens of each
 * @param wanted tokens; if the texts have fewer, all are taken
 */
export function chooseSequences(
  texts: ReadonlyArray<ArrayLike<number>>,
  { length: most, wanted, seed }: { length: number; wanted: number; seed: number },
): ChosenSequences {
  const longest = texts.reduce((length, it) => Math.max(length, it.length), 0);
  const length = Math.min(most, longest);
  if (length < 2) throw new OptionError('--text', `the texts have ${longest} token(s); at least two are needed`);
  const windows = texts.flatMap((text) =>
    Array.from({ length: Math.floor(text.length / length) }, (_, i) => ({ text, first: i * length })),
  );
  const random = createRandom(seed);
  for (let i = windows.length - 1; i > 0; i--) {
    const other = random.below(i + 1);
    [windows[i], windows[other]] = [windows[other] as Window, windows[i] as Window];
  }
  const taken = windows.slice(0, Math.max(1, Math.ceil(wanted / length)));
  const tokens = new Int32Array(taken.length * length);
  for (const [i, { text, first }] of taken.entries())
    for (let j = 0; j < length; j++) tokens[i * length + j] = text[first + j] as number;
  return { sequences: taken.length, length, tokens, available: windows.length };
}

interface Window {
  readonly text: ArrayLike<number>;
  readonly first: number;
}
