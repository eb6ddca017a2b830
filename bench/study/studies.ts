/** Defines the studies: the compared variants of the fixture and their names. */
import { type Activation, factorParameters, type SolverName } from '../../src/methods/mobe/problem.js';
import { denseParameters } from '../../src/methods/parameters.js';
import { meanAndDeltas, perExpert, sharedLeft, sharedRight } from './rivals.js';
import { GROUP, mobe, noise, noiseLike, rival, source, type Variant } from './variants.js';

/** Sizes and seeds of the studies. */
export interface Scale {
  /** Numbers of bases at full rank. All methods are compared at these sizes. */
  readonly bases: readonly number[];
  /** Pairs of a number of bases and a rank below p. */
  readonly ranks: ReadonlyArray<readonly [bases: number, rank: number]>;
  readonly activations: readonly Activation[];
  /** Squared norms of the noise, relative to each matrix's. */
  readonly noise: readonly number[];
  readonly expertsPerToken: readonly number[];
  /** Seeds of the noise, and of the fits that are repeated. */
  readonly seeds: readonly number[];
  readonly steps: Readonly<Record<SolverName, number>>;
}

/** The full studies. */
export const FULL: Scale = {
  bases: [2, 4, 8, 16],
  ranks: [
    [8, 16],
    [8, 32],
    [8, 48],
    [16, 32],
    [16, 48],
  ],
  activations: ['silu', 'tanh', 'gelu', 'relu', 'sigmoid', 'none'],
  noise: [0.01, 0.02, 0.05, 0.1, 0.2, 0.4],
  expertsPerToken: [2, 3, 5, 6, 8],
  seeds: [0, 1],
  // varpro has its default number of steps, and the reference's method as many as the time allows.
  steps: { varpro: 600, adam: 1000 },
};

/** A short trial. */
export const QUICK: Scale = {
  bases: [8],
  ranks: [[8, 32]],
  activations: ['silu', 'none'],
  noise: [0.05],
  expertsPerToken: [3],
  seeds: [0],
  steps: { varpro: 20, adam: 20 },
};

/** Number of bases in all studies that do not compare sizes. */
const BASES = 8;
/** The fixture's config. */
const EXPERTS_PER_TOKEN = 4;

/** A row of a study. */
export interface Row {
  /** The row's first cells, by column titles. */
  readonly what: Readonly<Record<string, string | number>>;
  /** One variant for each seed. The figures are means. */
  readonly variants: readonly Variant[];
  /** Default: the number in the model's config. */
  readonly expertsPerToken?: number;
}

/** A study: one table. */
export interface Study {
  readonly name: 'methods' | 'activations' | 'ranks' | 'noise' | 'experts';
  readonly title: string;
  readonly rows: readonly Row[];
}

/** Number of parameters of a group's factors with r = p. */
export const sizeOf = (bases: number): number => factorParameters({ ...GROUP, bases, rank: GROUP.rows });
/** Parameters relative to the dense experts. */
export const share = (parameters: number): number => parameters / denseParameters(GROUP);

/** All studies at a scale. */
export function studies({ steps: { varpro, adam }, seeds, ...scale }: Scale): Study[] {
  const fitted = (bases: number, rest: { rank?: number; activation?: Activation; seed?: number } = {}): Variant =>
    mobe({ bases, steps: varpro, ...rest });
  const usual = fitted(BASES);

  const methods = (bases: number): Array<[method: string, variants: Variant[]]> => [
    ['SVD of each expert', [rival('per-expert', perExpert, sizeOf(bases))]],
    ['SVD, one left factor', [rival('shared-left', sharedLeft, sizeOf(bases))]],
    ['SVD of m blocks', [rival(`${bases}-blocks`, sharedRight(bases), sizeOf(bases))]],
    ['MoLAE-style', [rival('molae-style', sharedRight(1), sizeOf(bases))]],
    ['D2-MoE-style', [rival('d2-moe-style', meanAndDeltas, sizeOf(bases))]],
    ['MoBE, no activation', [fitted(bases, { activation: 'none' })]],
    ['MoBE', bases === BASES ? seeds.map((seed) => fitted(bases, { seed })) : [fitted(bases)]],
  ];
  const reference = (activation: Activation): Variant =>
    mobe({ bases: BASES, steps: adam, activation, solver: 'adam' });

  const least = Math.min(...scale.bases);
  const compared: Array<[name: string, variant: Variant]> = [
    [`MoBE, m = ${BASES}`, usual],
    ...(least < BASES ? [[`MoBE, m = ${least}`, fitted(least)] satisfies [string, Variant]] : []),
    [`MoLAE-style, size of m = ${BASES}`, rival('molae-style', sharedRight(1), sizeOf(BASES))],
    [`SVD of each expert, size of m = ${BASES}`, rival('per-expert', perExpert, sizeOf(BASES))],
  ];

  return [
    {
      name: 'methods',
      title: 'Methods at equal parameters',
      rows: scale.bases.flatMap((m) => methods(m).map(([method, variants]) => ({ what: { m, method }, variants }))),
    },
    {
      name: 'activations',
      title: `Activations, m = ${BASES}`,
      rows: (['varpro', 'adam'] as const).flatMap((solver) =>
        scale.activations.map((activation) => ({
          what: { solver, activation },
          variants: [solver === 'adam' ? reference(activation) : fitted(BASES, { activation })],
        })),
      ),
    },
    {
      name: 'ranks',
      title: 'Number of bases and rank',
      rows: [...scale.bases.map((m) => [m, GROUP.rows] as const), ...scale.ranks].map(([m, rank]) => ({
        what: { m },
        variants: [fitted(m, { rank })],
      })),
    },
    {
      name: 'noise',
      title: 'Noise in place of factors',
      rows: [
        ...scale.noise.map((size) => ({
          what: { weights: 'noise', size },
          variants: seeds.map((seed) => noise(size, seed)),
        })),
        ...compared.flatMap(([weights, variant]) => [
          { what: { weights, size: '' }, variants: [variant] },
          {
            what: { weights: 'noise', size: `as ${weights}` },
            variants: seeds.map((seed) => noiseLike(variant, seed)),
          },
        ]),
      ],
    },
    {
      name: 'experts',
      title: 'MoBE†: fewer experts a token, and more',
      rows: [EXPERTS_PER_TOKEN, ...scale.expertsPerToken]
        .sort((a, b) => a - b)
        .flatMap((k) =>
          [['source', source] as const, [`MoBE, m = ${BASES}`, usual] as const].map(([model, variant]) => ({
            what: { k, model, ...active(k, variant !== source) },
            variants: [variant],
            ...(k !== EXPERTS_PER_TOKEN && { expertsPerToken: k }),
          })),
        ),
    },
  ];
}

/** Parameters of the experts that a token uses, relative to the source. MoBE is counted as A·(f(ΣαB)·x). */
function active(k: number, compressed: boolean): { 'active parameters': string } {
  const { rows: p, cols: d } = GROUP;
  const own = compressed ? 2 * (p * p + p * d) + p * d : 3 * p * d;
  return { 'active parameters': `${((100 * k * own) / (EXPERTS_PER_TOKEN * 3 * p * d)).toFixed(0)} %` };
}
