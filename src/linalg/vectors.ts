/** The loops over stretches of vectors that decompositions are made of. */

/** y[at…] += s·x[from…] */
export function addScaled(y: Float64Array, at: number, s: number, x: Float64Array, from: number, length: number): void {
  for (let i = 0; i < length; i++) y[at + i] = (y[at + i] as number) + s * (x[from + i] as number);
}

/** Σ x[a…]·y[b…]. Four sums side by side: one would wait for each addition. */
export function dot(x: Float64Array, a: number, y: Float64Array, b: number, length: number): number {
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  let i = 0;
  for (; i + 3 < length; i += 4) {
    s0 += (x[a + i] as number) * (y[b + i] as number);
    s1 += (x[a + i + 1] as number) * (y[b + i + 1] as number);
    s2 += (x[a + i + 2] as number) * (y[b + i + 2] as number);
    s3 += (x[a + i + 3] as number) * (y[b + i + 3] as number);
  }
  for (; i < length; i++) s0 += (x[a + i] as number) * (y[b + i] as number);
  return s0 + s1 + (s2 + s3);
}
