/** NumPy's array file, version 1.0, with f32. Both sides of a race read the same weights from it. */
const START = 128;

/**
 * Encodes an array.
 * @param parts the slices along the first axis of `shape`
 */
export function encodeNpy(parts: readonly Float32Array[], shape: readonly number[]): Buffer {
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(', ')}), }`.padEnd(START - 11);
  const start = Buffer.from(`\x93NUMPY\x01\x00\x76\x00${header}\n`, 'latin1');
  return Buffer.concat([start, ...parts.map((part) => Buffer.from(part.buffer, part.byteOffset, part.byteLength))]);
}

/** Decodes a file of `encodeNpy`. The parts are views of the file. */
export function decodeNpy(file: Uint8Array): { parts: Float32Array[]; shape: number[] } {
  const header = Buffer.from(file.buffer, file.byteOffset, START).toString('latin1');
  const shape = /'shape': \(([^)]+)\)/.exec(header)?.[1]?.split(', ').map(Number) ?? [];
  const size = shape.slice(1).reduce((a, b) => a * b, 1);
  const part = (i: number) => new Float32Array(file.buffer, file.byteOffset + START + 4 * i * size, size);
  return { parts: Array.from({ length: shape[0] ?? 0 }, (_, i) => part(i)), shape };
}
