import { expect, test } from 'vitest';
import { metricOf } from './group-metric.js';

test('a metric is read from a buffer at any offset', () => {
  const numbers = Float32Array.of(1, 2, 3, 4);
  const form = { columns: { form: 'full', shared: false } } as const;
  for (const offset of [0, 1, 4]) {
    const bytes = Buffer.alloc(offset + numbers.byteLength).subarray(offset);
    bytes.set(new Uint8Array(numbers.buffer));
    const { columns } = metricOf({ rows: 3, cols: 2 }, form, [bytes]);
    const found = new Float32Array(numbers.length);
    columns?.read(0, found);
    expect(found).toEqual(numbers);
  }
});
