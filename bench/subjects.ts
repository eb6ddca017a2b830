/** Groups for the races: the trained fixture's, and synthetic ones that no setting was tuned on. */
import { TINY_MODEL } from '../fixtures/paths.js';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import { decodeMatrix, readMatrix, type StoredMatrix } from '../src/checkpoint/stored-matrix.js';
import { createRandom, type Random } from '../src/linalg/random.js';
import type { Problem } from '../src/methods/mobe/problem.js';
import { detectModel } from '../src/models/detect.js';
import { LocalFiles } from '../src/sources/files.js';

export const KINDS = ['fixture', 'synthetic', 'real shape', 'large', 'gpu'] as const;
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
    synthetic('decaying spectrum', shape(16, 768, 2048, 4), decayingSpectrum, 'real shape'),
    synthetic('outlier columns', shape(16, 768, 2048, 4), outlierColumns, 'real shape'),
    synthetic('large, iid', shape(16, 768, 2048, 4), iid, 'large'),
    synthetic('a group of Qwen3-30B', shape(128, 768, 2048, 32), sharedStructure, 'gpu'),
    synthetic('16 experts of DeepSeek-V3', shape(16, 2048, 7168, 4), sharedStructure, 'gpu'),
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

/** Axis i of a spectrum has the scale (1 + i)^−DECAY. The last of 2048 axes has 1/14 of the scale of the first. */
const DECAY = 0.35;

/**
 * Mixtures of a few matrices, plus noise, whose rows lie along the same axes in all experts: singular values fall by a power law, and
 * the axes are turned, so that no column stands out. d must be a power of two.
 */
const decayingSpectrum: Generator = (problem, random) => {
  const { cols } = problem;
  if (!Number.isInteger(Math.log2(cols))) throw new RangeError(`${cols} columns are no power of two`);
  const signs = Float64Array.from({ length: cols }, () => (random.uniform() < 0.5 ? -1 : 1) / Math.sqrt(cols));
  return sharedStructure(problem, random).map((values) => {
    for (let start = 0; start < values.length; start += cols) {
      const row = values.subarray(start, start + cols);
      for (let i = 0; i < cols; i++) row[i] = (row[i] as number) * (signs[i] as number) * (1 + i) ** -DECAY;
      transformWalsh(row);
    }
    return values;
  });
};

/** The Walsh–Hadamard transform, in place. The length is a power of two. */
function transformWalsh(values: Float32Array): void {
  for (let half = 1; half < values.length; half *= 2)
    for (let start = 0; start < values.length; start += 2 * half)
      for (let i = start; i < start + half; i++) {
        const [a, b] = [values[i] as number, values[i + half] as number];
        values[i] = a + b;
        values[i + half] = a - b;
      }
}

/** Columns with log-normal scales, rows with others in each expert, and one number in a thousand ten times as large. */
const outlierColumns: Generator = (problem, random) => {
  const { cols, rows } = problem;
  const columns = Float64Array.from({ length: cols }, () => Math.exp(random.normal()));
  return sharedStructure(problem, random).map((values) => {
    const own = Float64Array.from({ length: rows }, () => Math.exp(random.normal() / 2));
    return values.map((value, i) => {
      const scale = (columns[i % cols] as number) * (own[Math.floor(i / cols)] as number);
      return value * scale * (random.uniform() < 1e-3 ? 10 : 1);
    });
  });
};
