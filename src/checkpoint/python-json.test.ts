import fc from 'fast-check';
import { expect, test } from 'vitest';
import { editPythonJson, parsePythonJson } from './python-json.js';

const TEXT = `{
  "time_step_limit": [0.0, Infinity],
  "floor": -Infinity,
  "nested": {"scale": NaN, "eps": 1e-06, "text": "Infinity, NaN and \\"-Infinity\\""},
  "rope_theta": 10000.0
}
`;

test("Python's constants are numbers, and text is text", () =>
  expect(parsePythonJson(TEXT)).toEqual({
    time_step_limit: [0, Number.POSITIVE_INFINITY],
    floor: Number.NEGATIVE_INFINITY,
    nested: { scale: Number.NaN, eps: 1e-6, text: 'Infinity, NaN and "-Infinity"' },
    rope_theta: 10000,
  }));

test.each([
  ['the last of duplicate keys counts', '{"a": 1, "a": 2}', { a: 2 }],
  ['a byte order mark comes first', '\ufeff{"a": 1}', { a: 1 }],
  ['both, with a constant', '\ufeff{"a": 1, "a": NaN}', { a: Number.NaN }],
  ['a constant alone', '-Infinity', Number.NEGATIVE_INFINITY],
])('%s', (_, text, value) => expect(parsePythonJson(text)).toEqual(value));

test.each([
  '{"a": Infinit}',
  '{"a": -NaN}',
  '{Infinity: 1}',
  '{"a": +Infinity}',
  '{"a": nan}',
  "{'a': 1}",
  '{"a": 1,}',
  '',
  '\ufeff\ufeff{}',
])('%j is refused, as Python does', (text) => expect(() => parsePythonJson(text)).toThrow(SyntaxError));

test('names that objects inherit stay names', () => {
  const value = parsePythonJson('{"__proto__": {"polluted": NaN}}') as object;
  expect(Object.keys(value)).toEqual(['__proto__']);
  expect((value as { polluted?: unknown }).polluted).toBeUndefined();
});

test('no change leaves every byte, one change leaves the rest', () => {
  for (const text of [TEXT, `\ufeff${TEXT}`, '{"a": 1, "a": 2, "b": NaN}']) expect(editPythonJson(text, {})).toBe(text);
  expect(editPythonJson(`\ufeff${TEXT}`, { 'nested.eps': 2 })).toBe(`\ufeff${TEXT.replace('1e-06', '2')}`);
  expect(editPythonJson(TEXT, { 'nested.scale': undefined })).toContain(
    '"time_step_limit": [0.0, Infinity],\n  "floor": -Infinity,',
  );
});

test('an edit on one line with a constant keeps it', () =>
  expect(parsePythonJson(editPythonJson('{"a": [0.0, Infinity], "b": NaN}', { a: 1, c: { d: 2 } }))).toEqual({
    a: 1,
    b: Number.NaN,
    c: { d: 2 },
  }));

test('of duplicate keys the one that counts is changed, and none is left of one that is removed', () => {
  const text = '{"q": {"x": 1}, "k": 1, "q": {"x": 2}, "\\u0071": {"x": 3}}';
  expect(parsePythonJson(editPythonJson(text, { 'q.x': 9 }))).toEqual({ k: 1, q: { x: 9 } });
  expect(editPythonJson(text, { 'q.x': 9 })).toContain('"q": {"x": 1}, "k": 1, "q": {"x": 2}');
  expect(parsePythonJson(editPythonJson(text, { q: undefined }))).toEqual({ k: 1 });
});

test('100 000 keys of one name are removed in time', () => {
  const text = `{"k": 1, ${Array.from({ length: 1e5 }, (_, i) => `"q": ${i}`)}}`;
  const started = performance.now();
  expect(parsePythonJson(editPythonJson(text, { q: undefined }))).toEqual({ k: 1 });
  expect(performance.now() - started).toBeLessThan(2000);
});

/** Prints a value as Python's `json.dumps` does: infinities and NaN are bare constants. */
const dumps = (value: unknown): string => {
  if (typeof value === 'number') return Object.is(value, -0) ? '-0.0' : String(value);
  if (Array.isArray(value)) return `[${value.map(dumps).join(', ')}]`;
  if (typeof value === 'object' && value !== null)
    return `{${Object.entries(value)
      .map(([key, it]) => `${JSON.stringify(key)}: ${dumps(it)}`)
      .join(', ')}}`;
  return JSON.stringify(value);
};

test('what Python writes is read as it was, and an entry that is added and removed again leaves it', () => {
  const number = fc.oneof(fc.double(), fc.constantFrom(Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY));
  const text = fc.oneof(fc.string(), fc.constantFrom('Infinity', '"NaN', '-Infinity\\'));
  const value = fc.letrec((tie) => ({
    any: fc.oneof({ maxDepth: 3 }, number, text, fc.boolean(), fc.constant(null), tie('list'), tie('object')),
    list: fc.array(tie('any'), { maxLength: 4 }),
    object: fc.dictionary(text, tie('any'), { maxKeys: 4 }),
  })).object;
  fc.assert(
    fc.property(value, (config) => {
      const written = dumps(config);
      expect(parsePythonJson(written)).toEqual(config);
      if ('added' in (config as object)) return;
      const edited = editPythonJson(written, { added: 1 });
      expect(parsePythonJson(edited)).toEqual({ ...(config as object), added: 1 });
      expect(parsePythonJson(editPythonJson(edited, { added: undefined }))).toEqual(config);
    }),
  );
});
