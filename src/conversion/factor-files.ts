/** Factor files, between `fit` and `export`: one safetensors file a group with A·σ, B and α. */
import { resolve } from 'node:path';
import { z } from 'zod';
import { isFloatDtype } from '../checkpoint/dtype.js';
import { floatTensor, type TensorInfo, type TensorSpec } from '../checkpoint/header.js';
import { openShard } from '../checkpoint/open-checkpoint.js';
import { FactorMismatchError, NotACheckpointError, UnsupportedDtypeError } from '../errors.js';
import { fileIn } from '../location.js';
import { ACTIVATIONS, type Problem } from '../methods/mobe/problem.js';
import { PROJECTIONS } from '../models/family.js';
import { layoutFile, type ShardLayout } from '../output/layout.js';
import type { Unit } from '../output/unfinished-run.js';
import { type Files, LocalFiles, type SourceFolder } from '../sources/files.js';
import { compareGroups, type GroupKey, type GroupPlan, groupLabel } from './group-plan.js';
import { lossCurve } from './stored-report.js';

const FILE_NAME = /^layer-\d+\.(gate|up|down)_proj(\.group-\d+)?\.safetensors$/;

export const isFactorFile = (name: string): boolean => FILE_NAME.test(name);

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

/** The source that factors were fitted to, and the settings that decided their bytes. */
export type FactorContext = Pick<FactorMetadata, 'sourceFingerprint' | 'settings'>;

const METADATA_KEY = 'mobe';

export const encodeFactorMetadata = (metadata: FactorMetadata): Record<string, string> => ({
  [METADATA_KEY]: JSON.stringify(metadata),
});

/** Room for the metadata in a header that is written before the errors are known. */
const FACTOR_HEADER_BYTES = 4096;

/** A (n, p, r), B (m, r, d) and α (n, m), for p × d the matrices that are factorised: the transposes of down_proj. */
export function factorTensors({ problem, dtype }: Pick<GroupPlan, 'problem' | 'dtype'>): TensorSpec[] {
  const { experts: n, rows: p, cols: d, bases: m, rank: r } = problem;
  return [floatTensor('A', dtype, n, p, r), floatTensor('B', dtype, m, r, d), floatTensor('alpha', dtype, n, m)];
}

/** The name by which an `Output` is told a tensor of a factor file: every file calls its own "A", "B" and "alpha". */
export const factorTensorName = (group: GroupKey, tensor: 'A' | 'B' | 'alpha'): string =>
  `${factorFileName(group)}:${tensor}`;

/** A group's file as an `Output` reserves it. The metadata, with the errors, replaces the spaces at the end of its header later. */
export function factorLayout(group: GroupPlan): ShardLayout {
  const file = factorFileName(group);
  const layout = layoutFile(file, factorTensors(group), {}, FACTOR_HEADER_BYTES);
  return { ...layout, tensors: layout.tensors.map((tensor) => ({ ...tensor, name: `${file}:${tensor.name}` })) };
}

/** A group's factors as the unit of work that an `Output` finishes, with the group's report for its note. */
export const factorUnit = (group: GroupPlan): Unit => ({
  id: groupLabel(group),
  parts: factorLayout(group).tensors.map(({ name, bytes }) => ({ tensor: name, offset: 0, bytes })),
  noted: true,
});

export interface FactorFile {
  readonly path: string;
  readonly metadata: FactorMetadata;
  readonly problem: Problem;
  readonly tensors: { readonly A: TensorInfo; readonly B: TensorInfo; readonly alpha: TensorInfo };
}

/**
 * All factor files of a folder, by layer, projection and group.
 * @param source a path of this machine, or any folder with what reads it
 */
export async function openFactorFolder(source: string | SourceFolder): Promise<FactorFile[]> {
  const { folder, files } = typeof source === 'string' ? { folder: resolve(source), files: new LocalFiles() } : source;
  const names = (await files.list(folder)).map(({ path }) => path).filter(isFactorFile);
  if (names.length === 0)
    throw new NotACheckpointError(folder, 'it has no factor files (layer-000.gate_proj.safetensors, …)');
  const opened: FactorFile[] = [];
  try {
    for (const name of names) opened.push(await readFactorFile(fileIn(folder, name), files));
  } finally {
    await files.close();
  }
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
