/** Variants of the fixture with other gate and up matrices. */
import { TINY_MODEL } from '../../fixtures/paths.js';
import { createRandom } from '../../src/linalg/random.js';
import { type Activation, factorParameters, type SolverName } from '../../src/methods/mobe/problem.js';
import type { Rank } from '../../src/methods/svd/baselines.js';
import { compress } from '../../streams/operations/compress.js';
import { readGroups, writeCopy } from './checkpoint.js';
import { addNoise, squaredDistance, squaredNorm } from './noise.js';
import type { Rival } from './rivals.js';

/** Sizes of each group: n experts of p × d. */
export const GROUP = { experts: 32, rows: 64, cols: 192 };
/** Threads of a fit. The number is fixed because it affects the result's bytes. */
const THREADS = 2;

/** A changed copy of the fixture. */
export interface Variant {
  /** Name of the variant and of its folder. */
  readonly key: string;
  /** Writes a dense checkpoint. `made` gives the folder of another variant. Returns the size of a group's factors, if there are any. */
  make(folder: string, made: (other: Variant) => Promise<string>): Promise<Rank | undefined>;
}

/** The fixture without changes. */
export const source: Variant = {
  key: 'source',
  make: async (folder) => void (await writeCopy(folder, ({ experts }) => experts)),
};

/** Options of a MoBE fit. */
export interface MobeOptions {
  readonly bases: number;
  readonly steps: number;
  readonly rank?: number;
  readonly activation?: Activation;
  readonly solver?: SolverName;
  readonly seed?: number;
}

/** A MoBE fit, expanded again. */
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

/** The result of another method. */
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

/** Adds noise to every matrix. The noise's squared norm is `share` of the matrix's. */
export const noise = (share: number, seed: number): Variant => ({
  key: `noise-${share}-${seed}`,
  make: async (folder) =>
    void (await writeCopy(folder, ({ experts }, index) =>
      experts.map((values, i) => addNoise(values, share * squaredNorm(values), createRandom(seed, index, i))),
    )),
});

/** Adds noise to every matrix. It is as large as the error of another variant in that matrix. */
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
