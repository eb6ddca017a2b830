/** A small seeded generator (sfc32), so that a seed gives the same numbers on every platform. */
export interface Random {
  /** A number in [0, 1). */
  uniform(): number;
  /** A standard normal number. */
  normal(): number;
  /** An integer in [0, bound). */
  below(bound: number): number;
}

/** Makes a generator. Each `stream` of a seed is independent of the others. */
export function createRandom(seed: number, ...stream: number[]): Random {
  let a = 0x9e3779b9 | 0;
  let b = 0x243f6a88 | 0;
  let c = 0xb7e15162 | 0;
  let counter = 1;
  const next = (): number => {
    const t = (a + b + counter++) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + t;
    return t >>> 0;
  };
  for (const word of [seed, ...stream]) {
    a ^= word | 0;
    b ^= Math.floor(word / 2 ** 32) | 0;
    for (let i = 0; i < 12; i++) next();
  }
  const uniform = (): number => (next() * 2 ** 21 + (next() >>> 11)) / 2 ** 53;
  return {
    uniform,
    normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()),
    below: (bound) => Math.floor(uniform() * bound),
  };
}
