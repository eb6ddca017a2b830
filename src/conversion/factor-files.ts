/** Factor files, between `fit` and `export`: one safetensors file a group with A·σ, B and α. */
import { readdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { z } from 'zod';
import { isFloatDtype } from '../checkpoint/dtype.js';
import { floatTensor, type TensorInfo, type TensorSpec } from '../checkpoint/header.js';
import { openShard } from '../checkpoint/open-checkpoint.js';
import { FactorMismatchError, NotACheckpointError, UnsupportedDtypeError } from '../errors.js';
import { ACTIVATIONS, type Problem } from '../methods/mobe/problem.js';
import { PROJECTIONS } from '../models/family.js';
import { type Files, LocalFiles } from '../sources/files.js';
import { compareGroups, type GroupKey, type GroupPlan } from './group-plan.js';
import { lossCurve } from './stored-report.js';

const FILE_NAME = /^layer-\d+\.(gate|up|down)_proj(\.group-\d+)?\.safetensors$/;

export const factorFileName = ({ layer, projection, group, groups }: GroupKey): string =>
  `layer-${String(layer).padStart(3, '0')}.${projection}${groups === 1 ? '' : `.group-${group}`}.safetensors`;

/** Kept as the JSON text of one metadata entry: safetensors metadata holds strings only. */
const metadataSchema = z.object({
  version: z.literal(1),
  activation: z.enum(ACTIVATIONS),
  sourceFingerprint: z.string(),
  /** What decided these bytes. */
  settings: z.record(z.string(), z.unknown()),
  /** σ is already folded into A. No timings: the same fit writes the same bytes. */
  report: z.object({
    layer: z.number().int(),
    projection: z.enum(PROJECTIONS),
    group: z.number().int().nonnegative(),
    groups: z.number().int().positive(),
    relativeError: z.number(),
    mse: z.number(),
    sigma: z.number(),
    steps: z.number(),
    losses: lossCurve.optional(),
  }),
});

export type FactorMetadata = z.infer<typeof metadataSchema>;

const METADATA_KEY = 'mobe';

export const encodeFactorMetadata = (metadata: FactorMetadata): Record<string, string> => ({
  [METADATA_KEY]: JSON.stringify(metadata),
});

/** Room for the metadata in a header that is written before the errors are known. */
export const FACTOR_HEADER_BYTES = 4096;

/** A (n, p, r), B (m, r, d) and α (n, m), for p × d the matrices that are factorised: the transposes of down_proj. */
export function factorTensors({ problem, dtype }: Pick<GroupPlan, 'problem' | 'dtype'>): TensorSpec[] {
  const { experts: n, rows: p, cols: d, bases: m, rank: r } = problem;
  return [floatTensor('A', dtype, n, p, r), floatTensor('B', dtype, m, r, d), floatTensor('alpha', dtype, n, m)];
}

export interface FactorFile {
  readonly path: string;
  readonly metadata: FactorMetadata;
  readonly problem: Problem;
  readonly tensors: { readonly A: TensorInfo; readonly B: TensorInfo; readonly alpha: TensorInfo };
}

/** All factor files of a folder, by layer, projection and group. */
export async function openFactorFolder(folder: string): Promise<FactorFile[]> {
  const root = resolve(folder);
  const names = await readdir(root).catch(() => {
    throw new NotACheckpointError(root, 'there is no such folder');
  });
  const files = names.filter((name) => FILE_NAME.test(name)).sort();
  if (files.length === 0)
    throw new NotACheckpointError(root, 'it has no factor files (layer-000.gate_proj.safetensors, …)');
  const opened = await Promise.all(files.map((file) => openFactorFile(join(root, file))));
  return opened.sort((a, b) => compareGroups(a.metadata.report, b.metadata.report));
}

export async function openFactorFile(path: string, files: Files = new LocalFiles()): Promise<FactorFile> {
  try {
    return await readFactorFile(path, files);
  } finally {
    await files.close();
  }
}

async function readFactorFile(path: string, files: Files): Promise<FactorFile> {
  const { tensors, metadata: texts } = await openShard(path, files);
  const metadata = parseMetadata(path, texts[METADATA_KEY]);
  const named = (name: string, dimensions: number): TensorInfo => {
    const tensor = tensors.find((it) => it.name === name);
    if (!tensor || tensor.shape.length !== dimensions)
      throw new FactorMismatchError(path, `it has no ${dimensions}-dimensional tensor "${name}"`);
    return tensor;
  };
  const A = named('A', 3);
  const B = named('B', 3);
  const alpha = named('alpha', 2);
  const [n, p, r] = A.shape as [number, number, number];
  const [m, rank, d] = B.shape as [number, number, number];
  if (rank !== r || String(alpha.shape) !== String([n, m])) {
    throw new FactorMismatchError(
      path,
      `A [${A.shape}], B [${B.shape}] and alpha [${alpha.shape}] do not fit together`,
    );
  }
  if (!isFloatDtype(A.dtype)) throw new UnsupportedDtypeError('A', path, A.dtype);
  if (B.dtype !== A.dtype || alpha.dtype !== A.dtype)
    throw new FactorMismatchError(path, 'A, B and alpha are of different dtypes');
  return {
    path,
    metadata,
    problem: { experts: n, rows: p, cols: d, bases: m, rank: r, activation: metadata.activation },
    tensors: { A, B, alpha },
  };
}

function parseMetadata(path: string, text: string | undefined): FactorMetadata {
  try {
    return metadataSchema.parse(JSON.parse(text ?? ''));
  } catch {
    throw new FactorMismatchError(path, 'it has no readable "mobe" metadata');
  }
}
