import fc from 'fast-check';
import { expect, test } from 'vitest';
import { duplicateKey } from './duplicate-key.js';

test.each([
  ['{"a":1,"a":2}', 'a'],
  ['{"x":{"b":1,"b":2}}', 'b'],
  ['[{"c":1},{"c":1,"c":1}]', 'c'],
  ['{"a\\"":1,"a\\u0022":2}', 'a"'],
  ['{"a":{"a":1},"b":["a","a"],"c":"a:a"}', undefined],
  ['{"__proto__":1,"__proto__":2}', '__proto__'],
  ['{}', undefined],
  ['"a"', undefined],
])('%s', (json, expected) => expect(duplicateKey(json)).toBe(expected));

test('no JSON text made from a value has one', () => {
  fc.assert(
    fc.property(fc.json(), (json) => {
      expect(duplicateKey(JSON.stringify(JSON.parse(json)))).toBeUndefined();
    }),
  );
});
