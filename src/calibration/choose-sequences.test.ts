import { expect, test } from 'vitest';
import { OptionError } from '../errors.js';
import { chooseSequences } from './choose-sequences.js';

const numbers = (count: number, first = 0): number[] => Array.from({ length: count }, (_, i) => first + i);
/** The first token of each sequence. */
const firsts = ({ tokens, length }: { tokens: Int32Array; length: number }): number[] =>
  Array.from({ length: tokens.length / length }, (_, i) => tokens[i * length] as number);

test('each text is cut by itself, and rests are left out', () => {
  const texts = [numbers(25), numbers(9, 100), numbers(31, 200)];
  const chosen = chooseSequences(texts, { length: 10, wanted: 1000, seed: 0 });
  expect(chosen).toMatchObject({ sequences: 5, length: 10, available: 5 });
  expect(firsts(chosen).sort((a, b) => a - b)).toEqual([0, 10, 200, 210, 220]);
  for (const [i, token] of chosen.tokens.entries()) expect(token % 10).toBe(i % 10);
});

test('as many sequences as the wanted tokens need, and more of the same seed include them', () => {
  const texts = [numbers(1000)];
  const few = chooseSequences(texts, { length: 10, wanted: 41, seed: 3 });
  const more = chooseSequences(texts, { length: 10, wanted: 200, seed: 3 });
  expect([few.sequences, more.sequences]).toEqual([5, 20]);
  expect(firsts(more).slice(0, 5)).toEqual(firsts(few));
  expect(new Set(firsts(more)).size).toBe(20);
});

test('the seed decides which, and not in the order of the text', () => {
  const texts = [numbers(1000)];
  const of = (seed: number) => firsts(chooseSequences(texts, { length: 10, wanted: 100, seed }));
  expect(of(1)).toEqual(of(1));
  expect(of(1)).not.toEqual(of(2));
  expect(of(1)).not.toEqual(of(1).sort((a, b) => a - b));
});

test('if no text fills a sequence, sequences are as long as the longest text', () => {
  const chosen = chooseSequences([numbers(7), numbers(4), numbers(7, 50)], { length: 10, wanted: 100, seed: 0 });
  expect(chosen).toMatchObject({ sequences: 2, length: 7 });
  expect(firsts(chosen).sort((a, b) => a - b)).toEqual([0, 50]);
});

test.each([[[]], [[[], [5]]]])('texts without two tokens are refused: %j', (texts) => {
  expect(() => chooseSequences(texts as number[][], { length: 10, wanted: 10, seed: 0 })).toThrow(OptionError);
});
