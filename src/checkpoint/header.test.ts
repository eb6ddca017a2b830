import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { readWithNpmSafetensors } from '../../fixtures/npm-safetensors.js';
import * as errors from '../errors.js';
import { byteLength } from './dtype.js';
import { encodeHeader, LENGTH_BYTES, parseHeader, parseHeaderLength, type TensorSpec } from './header.js';

const FILE = 'model.safetensors';
const text = (json: string): Uint8Array => new TextEncoder().encode(json);
const parseText = (json: string, dataBytes: number) =>
  parseHeader(text(json), LENGTH_BYTES + text(json).length + dataBytes, FILE).tensors;
const entry = (start: number, end: number, shape = [(end - start) / 4], dtype = 'F32') =>
  JSON.stringify({ dtype, shape, data_offsets: [start, end] });

describe('a malformed header is refused:', () => {
  const cases: Array<[name: string, error: new (...args: never[]) => Error, run: () => unknown]> = [
    ['shorter than its length field', errors.InvalidHeaderError, () => parseHeaderLength(new Uint8Array(3), 3, FILE)],
    [
      'longer than the file',
      errors.HeaderTooLongError,
      () => parseHeaderLength(Uint8Array.of(100, 0, 0, 0, 0, 0, 0, 0), 50, FILE),
    ],
    [
      'longer than the format allows',
      errors.HeaderTooLongError,
      () => parseHeaderLength(new Uint8Array(8).fill(255), 1e12, FILE),
    ],
    ['not JSON', errors.InvalidHeaderError, () => parseText('{"a": ', 0)],
    ['not UTF-8', errors.InvalidHeaderError, () => parseHeader(Uint8Array.of(0x7b, 0xff, 0x7d), 11, FILE)],
    ['a JSON array', errors.InvalidHeaderError, () => parseText('[]', 0)],
    ['beginning with a space', errors.InvalidHeaderError, () => parseText(' {}', 0)],
    ['a tensor twice', errors.DuplicateKeyError, () => parseText(`{"a":${entry(0, 4)},"a":${entry(0, 4)}}`, 4)],
    [
      'a tensor twice, once escaped',
      errors.DuplicateKeyError,
      () => parseText(`{"a":${entry(0, 4)},"\\u0061":${entry(4, 8)}}`, 8),
    ],
    ['an entry that is no object', errors.InvalidHeaderError, () => parseText('{"a":3}', 0)],
    ['no dtype', errors.InvalidHeaderError, () => parseText('{"a":{"shape":[1],"data_offsets":[0,4]}}', 4)],
    ['a negative size', errors.InvalidHeaderError, () => parseText(`{"a":${entry(0, 4, [-1])}}`, 4)],
    ['a fractional size', errors.InvalidHeaderError, () => parseText(`{"a":${entry(0, 4, [0.5])}}`, 4)],
    [
      'offsets that are not two',
      errors.OffsetError,
      () => parseText('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}', 4),
    ],
    [
      'an end before its beginning',
      errors.OffsetError,
      () => parseText('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', 4),
    ],
    [
      'an offset beyond 2^53',
      errors.OffsetError,
      () => parseText('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e300]}}', 4),
    ],
    ['overlapping tensors', errors.OffsetError, () => parseText(`{"a":${entry(0, 8)},"b":${entry(4, 12)}}`, 12)],
    ['a hole between tensors', errors.OffsetError, () => parseText(`{"a":${entry(0, 4)},"b":${entry(8, 12)}}`, 12)],
    ['a hole before the first tensor', errors.OffsetError, () => parseText(`{"a":${entry(4, 8)}}`, 8)],
    ['data that ends early', errors.TruncatedShardError, () => parseText(`{"a":${entry(0, 8)}}`, 4)],
    ['data after the last tensor', errors.InvalidHeaderError, () => parseText(`{"a":${entry(0, 8)}}`, 12)],
    [
      'a size that does not match dtype and shape',
      errors.SizeMismatchError,
      () => parseText(`{"a":${entry(0, 8, [3])}}`, 8),
    ],
    ['metadata twice', errors.DuplicateKeyError, () => parseText('{"__metadata__":{},"__metadata__":{}}', 0)],
    ['metadata that is not text', errors.InvalidHeaderError, () => parseText('{"__metadata__":{"a":1}}', 0)],
  ];
  test.each(cases)('%s', (_, error, run) => {
    expect(run).toThrow(error);
    expect(run).toThrow(FILE);
  });
});

describe('an unusual header is read:', () => {
  test('without metadata, empty', () => expect(parseText('{}', 0)).toEqual([]));
  test('empty metadata', () => expect(parseText('{"__metadata__":{}}', 0)).toEqual([]));
  test('a scalar and an empty tensor', () => {
    const [empty, scalar] = parseText(`{"s":${entry(0, 4, [])},"e":${entry(0, 0, [0, 5])}}`, 4);
    expect([empty?.name, scalar?.name]).toEqual(['e', 's']);
  });
  test('a dtype nobody knows passes, its size unchecked', () =>
    expect(parseText(`{"a":${entry(0, 7, [1], 'X9')}}`, 7)).toHaveLength(1));
  test('sub-byte elements', () => expect(parseText(`{"a":${entry(0, 3, [6], 'F4')}}`, 3)).toHaveLength(1));
  test('a tensor named like an object member', () => {
    expect(parseText(`{"__proto__":${entry(0, 4)},"constructor":${entry(4, 8)}}`, 8).map(({ name }) => name)).toEqual([
      '__proto__',
      'constructor',
    ]);
  });
});

const specs: fc.Arbitrary<TensorSpec[]> = fc
  .uniqueArray(
    fc.record({
      name: fc.oneof(
        fc.string({ minLength: 1 }),
        fc.constantFrom('__proto__', 'model.layers.0.mlp.experts.0.up_proj.weight'),
      ),
      dtype: fc.constantFrom('F32', 'BF16', 'F8_E4M3', 'I64'),
      shape: fc.array(fc.nat(5), { maxLength: 3 }),
    }),
    { selector: ({ name }) => name, maxLength: 8 },
  )
  .map((tensors) =>
    tensors
      .filter(({ name }) => name !== '__metadata__')
      .map((tensor) => ({ ...tensor, bytes: byteLength(tensor.dtype, tensor.shape) as number })),
  );

test('what is encoded parses to the same tensors, aligned to 8 bytes', () => {
  fc.assert(
    fc.property(specs, (tensors) => {
      const encoded = encodeHeader(tensors, { note: 'x' });
      expect(encoded.byteLength % 8).toBe(0);
      const bytes = tensors.reduce((sum, tensor) => sum + tensor.bytes, encoded.byteLength);
      const length = parseHeaderLength(encoded, bytes, FILE);
      expect(length).toBe(encoded.byteLength - LENGTH_BYTES);
      const { tensors: parsed, metadata } = parseHeader(encoded.subarray(LENGTH_BYTES), bytes, FILE);
      const strip = ({ name, dtype, shape }: Omit<TensorSpec, 'bytes'>) => ({ name, dtype, shape: [...shape] });
      const byName = (a: { name: string }, b: { name: string }) => (a.name < b.name ? -1 : 1);
      expect(parsed.map(strip).sort(byName)).toEqual(tensors.map(strip).sort(byName));
      expect(metadata).toEqual({ format: 'pt', note: 'x' });
    }),
  );
});

test('room for a longer header can be kept', () => {
  expect(encodeHeader([], {}, 4096).byteLength).toBe(4096);
  expect(parseHeader(encodeHeader([], {}, 4096).subarray(LENGTH_BYTES), 4096, FILE).tensors).toEqual([]);
});

test('the npm package "safetensors" reads an encoded file', () => {
  const header = encodeHeader([
    { name: 'a', dtype: 'F32', shape: [2, 2], bytes: 16 },
    { name: 'b', dtype: 'F32', shape: [3], bytes: 12 },
  ]);
  const data = Uint8Array.from({ length: 28 }, (_, i) => i);
  const file = new Uint8Array(header.byteLength + data.byteLength);
  file.set(header);
  file.set(data, header.byteLength);
  const reader = readWithNpmSafetensors(file);
  expect(reader.metadata.get('a')).toMatchObject({ dtype: 'F32', shape: [2, 2] });
  expect(reader.getTensor('b')).toEqual(data.subarray(16));
});
