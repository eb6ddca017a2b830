import fc from 'fast-check';
import { expect, test } from 'vitest';
import { parseSpan, parseString, scanObject, wholeText } from './scan-json.js';

function members(text: string | Uint8Array): Array<[string, unknown]> {
  const json = Buffer.from(text as string);
  const found: Array<[string, unknown]> = [];
  scanObject(json, wholeText(json), (key, span) => found.push([parseString(json, key), parseSpan(json, span)]));
  return found;
}

test('finds what JSON.parse finds, at any spacing', () => {
  const object = fc.dictionary(fc.string({ unit: 'grapheme' }), fc.jsonValue());
  fc.assert(
    fc.property(object, fc.constantFrom(undefined, 1, '\t'), (value, space) => {
      const text = JSON.stringify(value, null, space);
      expect(members(`\n ${text}\r\n\t `)).toEqual(Object.entries(JSON.parse(text)));
    }),
  );
});

test('refuses what JSON.parse refuses', () => {
  const damaged = fc
    .tuple(
      fc.dictionary(fc.string(), fc.jsonValue(), { minKeys: 1 }),
      fc.nat(),
      fc.constantFrom('', '{', '"', ',', ':', ']', 'x'),
    )
    .map(([value, at, instead]) => {
      const text = JSON.stringify(value);
      const i = at % text.length;
      return text.slice(0, i) + instead + text.slice(i + 1);
    });
  fc.assert(
    fc.property(damaged, (text) => {
      let parsed: unknown;
      try {
        parsed = JSON.parse(text);
      } catch {
        expect(() => members(text)).toThrow(SyntaxError);
        return;
      }
      expect(new Set(members(text).map(([key]) => key))).toEqual(new Set(Object.keys(parsed as object)));
    }),
    { numRuns: 2000 },
  );
});

test('gives both of two members of a name', () =>
  expect(members('{"a":1,"\\u0061":2}')).toEqual([
    ['a', 1],
    ['a', 2],
  ]));

test.each([
  ['a list', '[]'],
  ['a comma at the end', '{"a":1,}'],
  ['two objects', '{}{}'],
  ['a line break in a name', '{"a\nb":1}'],
  ['a name without quotes', '{a:1}'],
  ['a string that does not end', '{"a":"b'],
  ['nothing', ''],
  ['bytes that are not UTF-8', Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d)],
])('refuses %s', (_, text) => expect(() => members(text)).toThrow(SyntaxError));
