import { expect, test } from 'vitest';
import { formatBytes, formatCount, formatSeconds, parseBytes, printable } from './format.js';

test.each([
  ['8GiB', 8 * 2 ** 30],
  ['5GB', 5e9],
  ['1.5 MiB', 1.5 * 2 ** 20],
  ['600mb', 6e8],
  ['1000', 1000],
  ['10B', 10],
  ['0', undefined],
  ['-3GB', undefined],
  ['3XB', undefined],
  ['GB', undefined],
  ['', undefined],
])('parseBytes(%s)', (text, expected) => expect(parseBytes(text)).toBe(expected));

test.each([
  [0, '0 B'],
  [1536, '1.5 KiB'],
  [2 ** 30, '1.0 GiB'],
  [700 * 2 ** 20, '700 MiB'],
])('formatBytes(%d)', (bytes, expected) => expect(formatBytes(bytes)).toBe(expected));

test.each([
  [0.25, '0.3 s'],
  [75, '75 s'],
  [600, '10 min'],
  [3725, '1 h 02 min'],
  [200_000, '2 d 7 h'],
  [Number.POSITIVE_INFINITY, 'unknown'],
])('formatSeconds(%d)', (seconds, expected) => expect(formatSeconds(seconds)).toBe(expected));

test.each([
  [5_239_744, '5.24 M'],
  [999, '999'],
  [30.5e9, '30.5 B'],
])('formatCount(%d)', (count, expected) => expect(formatCount(count)).toBe(expected));

test('what would steer a terminal is spelled out', () => {
  expect(printable('a\nb ä "x"')).toBe('a\nb ä "x"');
  expect(printable('\u001b[2Jgone\r\u009b\u202e')).toBe('\\u001b[2Jgone\\u000d\\u009b\\u202e');
});
