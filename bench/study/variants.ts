/** What may stand in place of the fixture's gate and up matrices. */
import { TINY_MODEL } from '../../fixtures/paths.js';
import { createRandom } from '../../src/linalg/random.js';
import { type Activation, factorParameters, type SolverName } from '../../src/methods/mobe/problem.js';
import type { Rank } from '../../src/methods/svd/baselines.js';
import { compress } from '../../streams/operations/compress.js';
import { readGroups, writeCopy } from './checkpoint.js';
import { addNoise, squaredDistance, squaredNorm } from './noise.js';
import type { Rival } from './rivals.js';

/** Of each group: n experts of p × d. */
export const GROUP = { experts: 32, rows: 64, cols: 192 };
/** Fits run this many side by side; so many everywhere, since it is among what decides their bytes. */
const THREADS = 2;

export interface Variant {
  /** Names it, and its folder. */
  readonly key: string;
  /** Writes a dense checkpoint. `made` has the folder of another one. Returns the size of a group's factors, where there are any. */
  make(folder: string, made: (other: Variant) => Promise<string>): Promise<Rank | undefined>;
}

export const source: Variant = {
  key: 'source',
  make: async (folder) => void (await writeCopy(folder, ({ experts }) => experts)),
};

export interface MobeOptions {
  readonly bases: number;
  readonly steps: number;
  readonly rank?: number;
  readonly activation?: Activation;
  readonly solver?: SolverName;
  readonly seed?: number;
}

export function mobe({
  rank = GROUP.rows,
  activation = 'silu',
  solver = 'varpro',
  seed = 0,
  ...rest
}: MobeOptions): Variant {
  const { bases, steps } = rest;
  return {
    key: `mobe-m${bases}-r${rank}-${activation}-${solver}-${steps}-${seed}`,
    async make(folder) {
      const options = { bases, steps, rank, activation, solver, seed, threads: THREADS, format: 'hf' } as const;
      await compress(TINY_MODEL, folder, options);
      return { rank, parameters: factorParameters({ ...GROUP, bases, rank }) };
    },
  };
}

export const rival = (name: string, factorise: Rival, parameters: number): Variant => ({
  key: `${name}-${parameters}`,
  async make(folder) {
    let size: Rank | undefined;
    await writeCopy(folder, (group) => {
      const { experts, ...rest } = factorise(group, parameters);
      size = rest;
      return experts;
    });
    return size;
  },
});

/** Noise on every matrix, its square this share of the matrix's. */
export const noise = (share: number, seed: number): Variant => ({
  key: `noise-${share}-${seed}`,
  make: async (folder) =>
    void (await writeCopy(folder, ({ experts }, index) =>
      experts.map((values, i) => addNoise(values, share * squaredNorm(values), createRandom(seed, index, i))),
    )),
});

/** Noise on every matrix, as large as another variant's error of that matrix. */
export const noiseLike = (other: Variant, seed: number): Variant => ({
  key: `noise-like-${other.key}-${seed}`,
  async make(folder, made) {
    const others = await readGroups(await made(other));
    await writeCopy(folder, ({ experts }, index) =>
      experts.map((values, i) => {
        const error = squaredDistance(values, others[index]?.experts[i] as Float32Array);
        return addNoise(values, error, createRandom(seed, index, i));
      }),
    );
    return undefined;
  },
});
