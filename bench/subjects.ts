/** Groups for the races: the trained fixture's, and synthetic ones that no setting was tuned on. */
import { TINY_MODEL } from '../fixtures/paths.js';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import { decodeMatrix, readMatrix, type StoredMatrix } from '../src/checkpoint/stored-matrix.js';
import { createRandom, type Random } from '../src/linalg/random.js';
import type { Problem } from '../src/methods/mobe/problem.js';
import { detectModel } from '../src/models/detect.js';
import { LocalFiles } from '../src/sources/files.js';

export const KINDS = ['fixture', 'synthetic', 'large'] as const;
export type Kind = (typeof KINDS)[number];

/** A group of experts to fit. */
export interface Subject {
  readonly name: string;
  readonly kind: Kind;
  readonly problem: Omit<Problem, 'activation'>;
  /** The experts, each (p, d), row-major. */
  experts(): Promise<Float32Array[]>;
}

const shape = (experts: number, rows: number, cols: number, bases: number): Subject['problem'] => ({
  experts,
  rows,
  cols,
  bases,
  rank: Math.min(rows, cols),
});

/** All groups. */
export function subjects(): Subject[] {
  const layers = [0, 1, 2, 3];
  const fixture = layers.flatMap((layer) => [trained(layer, 'gate_proj'), trained(layer, 'up_proj')]);
  return [
    ...fixture,
    synthetic('iid', shape(32, 32, 96, 8), iid),
    synthetic('shared structure', shape(32, 32, 96, 8), sharedStructure),
    synthetic('heavy-tailed columns', shape(32, 32, 96, 8), heavyColumns),
    synthetic('n=64 m=4', shape(64, 32, 96, 4), sharedStructure),
    synthetic('n=128 m=32', shape(128, 32, 96, 32), sharedStructure),
    synthetic('large, iid', shape(16, 768, 2048, 4), iid, 'large'),
  ];
}

const trained = (layer: number, projection: 'gate_proj' | 'up_proj'): Subject => ({
  name: `layer ${layer} ${projection}`,
  kind: 'fixture',
  problem: shape(32, 64, 192, 8),
  async experts() {
    const { layers } = detectModel(await openCheckpoint(TINY_MODEL));
    return decodeExperts(layers.find((it) => it.layer === layer)?.experts[projection] ?? []);
  },
});

/** Reads and decodes matrices, each (rows, cols), row-major, not transposed. */
export async function decodeExperts(matrices: readonly StoredMatrix[]): Promise<Float32Array[]> {
  const reader = new LocalFiles();
  try {
    return await Promise.all(
      matrices.map(async (matrix) => {
        const values = new Float32Array(matrix.rows * matrix.cols);
        decodeMatrix({ ...matrix, transposed: false }, await readMatrix(reader, matrix), values);
        return values;
      }),
    );
  } finally {
    await reader.close();
  }
}

type Generator = (problem: Subject['problem'], random: Random) => Float32Array[];

const synthetic = (
  name: string,
  problem: Subject['problem'],
  generate: Generator,
  kind: Kind = 'synthetic',
): Subject => ({
  name,
  kind,
  problem,
  experts: async () => generate(problem, createRandom(2024, problem.experts, problem.bases)),
});

const SCALE = 0.02;
const COMMON = 6;
const NOISE = 0.5;

const iid: Generator = ({ experts, rows, cols }, random) =>
  Array.from({ length: experts }, () => Float32Array.from({ length: rows * cols }, () => SCALE * random.normal()));

/** Mixtures of a few matrices, plus noise. */
const sharedStructure: Generator = (problem, random) => {
  const common = iid({ ...problem, experts: COMMON }, random);
  return iid(problem, random).map((noise) => {
    const shares = common.map(() => random.normal() / Math.sqrt(COMMON));
    return noise.map((value, i) =>
      common.reduce((sum, matrix, k) => sum + (shares[k] as number) * (matrix[i] as number), NOISE * value),
    );
  });
};

/** The columns have log-normal scales. */
const heavyColumns: Generator = (problem, random) => {
  const scales = Float64Array.from({ length: problem.cols }, () => Math.exp(random.normal()));
  return iid(problem, random).map((values) => values.map((value, i) => value * (scales[i % problem.cols] as number)));
};
