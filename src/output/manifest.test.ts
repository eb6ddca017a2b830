import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DamagedManifestError, IncompleteOutputError } from '../errors.js';
import { READ_BYTES } from '../sources/files.js';
import { decodeManifest, encodeManifest, type ManifestPart } from './manifest.js';
import { checkSeal, seal } from './seal.js';

const digest = fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes).toString('hex'));
const part = (start: number, end: number, sha256 = '0'.repeat(64)): ManifestPart => ({ start, end, sha256 });
const decode = (text: string) => decodeManifest(Buffer.from(text), 'a manifest');

/** Parts that follow each other, of tensors with any names. */
const parts = fc
  .array(fc.tuple(fc.integer({ min: 1, max: READ_BYTES }), digest, fc.option(fc.string(), { nil: undefined })))
  .map((sizes) => {
    let start = 0;
    return sizes.map(([size, sha256, tensor]): ManifestPart => {
      start += size;
      return { ...(tensor !== undefined && { tensor }), start: start - size, end: start, sha256 };
    });
  });
const name = fc.constantFrom('a', 'b/c.py', '__proto__', 'constructor', 'model.safetensors', 'ü');

test('what is written is read back, in whatever order the parts came', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(name, parts)), fc.infiniteStream(fc.nat()), (files, order) => {
      const manifest = new Map(files);
      const shuffled = new Map(
        [...manifest].map(([file, own]) => {
          const keys = new Map(own.map((it) => [it, order.next().value as number]));
          return [file, [...own].sort((a, b) => (keys.get(a) as number) - (keys.get(b) as number))] as const;
        }),
      );
      expect(decode(encodeManifest(shuffled))).toEqual(new Map([...manifest].sort(([a], [b]) => (a < b ? -1 : 1))));
    }),
  );
});

test('any single flipped bit of a sealed text shows', () => {
  const text = Buffer.from(encodeManifest(new Map([['a', [part(0, 5), part(5, 9)]]])));
  expect(checkSeal(text)).toBe('sound');
  for (let bit = 0; bit < 8 * text.length; bit++) {
    const flipped = Buffer.from(text);
    flipped[bit >> 3] = (flipped[bit >> 3] as number) ^ (1 << (bit & 7));
    expect(checkSeal(flipped), `bit ${bit}`).not.toBe('sound');
  }
});

test('a sealed text is JSON, with the seal as its last entry', () => {
  const sealed = seal(JSON.stringify({ a: { b: '}' } }, null, 2));
  expect(Object.keys(JSON.parse(sealed))).toEqual(['a', 'sha256']);
  expect(checkSeal(Buffer.from('{"a": 1}'))).toBe('none');
  expect(checkSeal(new Uint8Array(0))).toBe('none');
});

describe('refused:', () => {
  test.each<[string, ManifestPart[]]>([
    ['a gap', [part(0, 5), part(6, 9)]],
    ['an overlap', [part(0, 5), part(4, 9)]],
    ['a missing beginning', [part(1, 9)]],
    ['a part written twice', [part(0, 5), part(0, 5)]],
  ])('%s, where it is written and where it is read', (_what, own) => {
    expect(() => encodeManifest(new Map([['a', own]]))).toThrow(IncompleteOutputError);
    const sealed = seal(JSON.stringify({ version: 1, algorithm: 'sha256', files: [{ file: 'a', parts: own }] }));
    expect(() => decode(sealed)).toThrow(DamagedManifestError);
  });

  test.each<[string, unknown]>([
    ['a file elsewhere', [{ file: '../a', parts: [] }]],
    ['a part that would take a terabyte', [{ file: 'a', parts: [part(0, 1e12)] }]],
    ['a part of nothing', [{ file: 'a', parts: [part(0, 0)] }]],
    ['a hash that is none', [{ file: 'a', parts: [part(0, 1, 'xyz')] }]],
    ['files that are no list', {}],
  ])('%s', (_what, files) => {
    const sealed = seal(JSON.stringify({ version: 1, algorithm: 'sha256', files }));
    expect(() => decode(sealed)).toThrow(DamagedManifestError);
  });

  test('a manifest without a seal', () => {
    expect(() => decode('{"version": 1, "algorithm": "sha256", "files": []}')).toThrow(DamagedManifestError);
  });
});
