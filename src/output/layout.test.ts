import fc from 'fast-check';
import { expect, test } from 'vitest';
import { encodeIndex, layoutShards } from './layout.js';

const spec = (name: string, bytes: number) => ({ name, dtype: 'U8', shape: [bytes], bytes });
const names = (sizes: number[], limit: number) =>
  layoutShards(
    sizes.map((bytes, i) => spec(`t${i}`, bytes)),
    limit,
  ).shards.map(({ tensors }) => tensors.map(({ name }) => name).join(' '));

test('shards fill greedily in order; a tensor over the limit stands alone', () => {
  expect(names([4, 4, 4, 20, 1, 9, 1], 10)).toEqual(['t0 t1', 't2', 't3', 't4 t5', 't6']);
});

test('one shard is model.safetensors and has no index', () => {
  const layout = layoutShards([spec('a', 5)], 10);
  expect(layout.shards.map(({ file }) => file)).toEqual(['model.safetensors']);
  expect(encodeIndex(layout)).toBeUndefined();
});

test('several are numbered, and the index places every tensor and counts tensor bytes only', () => {
  const index = JSON.parse(encodeIndex(layoutShards([spec('b', 8), spec('a', 8)], 10))?.text ?? '');
  expect(index).toEqual({
    metadata: { total_size: 16 },
    weight_map: { a: 'model-00002-of-00002.safetensors', b: 'model-00001-of-00002.safetensors' },
  });
});

test('nothing is lost, no shard of several tensors exceeds the limit', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(30)), fc.integer({ min: 1, max: 40 }), (sizes, limit) => {
      const { shards, tensorBytes } = layoutShards(
        sizes.map((bytes, i) => spec(`t${i}`, bytes)),
        limit,
      );
      expect(shards.flatMap(({ tensors }) => tensors.map(({ name }) => name))).toEqual(sizes.map((_, i) => `t${i}`));
      expect(tensorBytes).toBe(sizes.reduce((a, b) => a + b, 0));
      for (const { tensors, bytes, header } of shards) {
        if (tensors.length > 1) expect(bytes - header.byteLength).toBeLessThanOrEqual(limit);
      }
    }),
  );
});
