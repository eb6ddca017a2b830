/** Factor files, which `fit` writes and `export` reads: one safetensors file for each group, with σ folded into its factors. */
import { resolve } from 'node:path';
import { z } from 'zod';
import { type FloatDtype, isFloatDtype } from '../checkpoint/dtype.js';
import { floatTensor, type TensorInfo, type TensorSpec } from '../checkpoint/header.js';
import { openShard } from '../checkpoint/open-checkpoint.js';
import { FactorMismatchError, NotACheckpointError, UnsupportedDtypeError } from '../errors.js';
import { fileIn } from '../location.js';
import type { GroupShape, Method, MethodProblem } from '../methods/method.js';
import { methodRecord, namedMethod } from '../methods/registry.js';
import { PROJECTIONS } from '../models/family.js';
import { layoutFile, type ShardLayout } from '../output/layout.js';
import { type Files, LocalFiles, type SourceFolder } from '../sources/files.js';
import { compareGroups, type GroupKey, type GroupPlan } from './group-plan.js';
import { lossCurve, metricReport } from './stored-report.js';

const FILE_NAME = /^layer-\d+\.(gate|up|down)_proj(\.group-\d+)?\.safetensors$/;

/** Whether a file name is that of a factor file. */
export const isFactorFile = (name: string): boolean => FILE_NAME.test(name);

/** The file name of a group's factors. */
export const factorFileName = ({ layer, projection, group, groups }: GroupKey): string =>
  `layer-${String(layer).padStart(3, '0')}.${projection}${groups === 1 ? '' : `.group-${group}`}.safetensors`;

/** The metadata, stored as JSON text in one entry, because safetensors metadata can hold only strings. */
const metadataSchema = z.looseObject({
  version: z.literal(1),
  /** Absent for the default method. The details of the problem (`Method.details`) are further keys of this object. */
  method: z.string().optional(),
  sourceFingerprint: z.string(),
  /** The settings that decided these bytes. */
  settings: z.record(z.string(), z.unknown()),
  /** The group's report, without timings, so that the same fit writes the same bytes. */
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
    metric: metricReport.optional(),
  }),
});

/** The metadata of a factor file. */
export type FactorMetadata = z.infer<typeof metadataSchema>;

/** The source that factors were fitted to, and the settings that decided their bytes. */
export type FactorContext = Pick<FactorMetadata, 'sourceFingerprint' | 'settings'>;

const METADATA_KEY = 'mobe';

/** The safetensors metadata of a factor file. */
export function encodeFactorMetadata(
  { method, problem }: MethodProblem,
  { sourceFingerprint, settings, report }: Pick<FactorMetadata, 'sourceFingerprint' | 'settings' | 'report'>,
): Record<string, string> {
  const kind = { version: 1, ...methodRecord(method), ...method.details(problem) };
  return { [METADATA_KEY]: JSON.stringify({ ...kind, sourceFingerprint, settings, report }) };
}

/** The size of a header. It is written before the errors are known, so it has room for the metadata. */
const FACTOR_HEADER_BYTES = 4096;

/**
 * The tensors of a factor file: first the factors of the experts, stacked as (n, …), then the shared factors. For down_proj
 * they are factors of the transposed weights.
 */
export function factorTensors({
  method,
  problem,
  dtype,
}: Pick<GroupPlan, 'method' | 'problem' | 'dtype'>): TensorSpec[] {
  const { shared, byExpert } = method.stores(problem);
  return [
    ...byExpert.map(({ name, shape }) => floatTensor(name, dtype, problem.experts, ...shape)),
    ...shared.map(({ name, shape }) => floatTensor(name, dtype, ...shape)),
  ];
}

/**
 * The name under which an `Output` receives a tensor of a factor file. It includes the file, because all files have the same
 * tensors.
 */
export const factorTensorName = (group: GroupKey, factor: string): string => `${factorFileName(group)}:${factor}`;

/** The layout of a group's file. The metadata with the errors later replaces the spaces at the end of its header. */
export function factorLayout(group: GroupPlan): ShardLayout {
  const layout = layoutFile(factorFileName(group), factorTensors(group), {}, FACTOR_HEADER_BYTES);
  return { ...layout, tensors: layout.tensors.map((it) => ({ ...it, name: factorTensorName(group, it.name) })) };
}

/** A factor file that was opened and checked. */
export interface FactorFile extends MethodProblem {
  readonly path: string;
  readonly metadata: FactorMetadata;
  readonly dtype: FloatDtype;
  /** The tensors of `factorTensors`, by name. */
  readonly tensors: Readonly<Record<string, TensorInfo>>;
}

/**
 * Opens all factor files of a folder, sorted by layer, projection and group. Throws `NotACheckpointError` if there are none,
 * and as `openFactorFile` does.
 * @param source a local path, or a folder with an object that reads it
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

/** Opens a factor file. Throws `FactorMismatchError` or another `InputError` if it is not one. */
export async function openFactorFile(path: string, files: Files = new LocalFiles()): Promise<FactorFile> {
  try {
    return await readFactorFile(path, files);
  } finally {
    await files.close();
  }
}

async function readFactorFile(path: string, files: Files): Promise<FactorFile> {
  const { tensors: held, metadata: texts } = await openShard(path, files);
  const metadata = parseMetadata(path, texts[METADATA_KEY]);
  const method = namedMethod(metadata.method);
  if (!method)
    throw new FactorMismatchError(path, `its method is "${metadata.method}", which this version of mobe does not know`);
  const problem = findProblem(path, method, held, metadata);
  const dtype = held[0]?.dtype ?? '';
  if (!isFloatDtype(dtype)) throw new UnsupportedDtypeError(held[0]?.name ?? '', path, dtype);
  const named = factorTensors({ method, problem, dtype }).map((spec) => {
    const tensor = held.find(({ name }) => name === spec.name);
    if (!tensor || String(tensor.shape) !== String(spec.shape)) throw unlikeFactors(path, method, held);
    if (tensor.dtype !== dtype) throw new FactorMismatchError(path, 'its tensors are of different dtypes');
    return [spec.name, tensor] as const;
  });
  return { path, metadata, method, problem, dtype, tensors: Object.fromEntries(named) };
}

function findProblem(
  path: string,
  method: Method,
  tensors: readonly TensorInfo[],
  metadata: FactorMetadata,
): GroupShape {
  const shapes = Object.fromEntries(tensors.map(({ name, shape }) => [name, shape]));
  const { success, data } = method.problemSchema.safeParse(method.problemOf(shapes, metadata));
  if (!success) throw unlikeFactors(path, method, tensors);
  return data;
}

function unlikeFactors(path: string, { title }: Method, tensors: readonly TensorInfo[]): FactorMismatchError {
  const held = tensors.map(({ name, shape }) => `${name} [${shape}]`).join(', ');
  return new FactorMismatchError(path, `what it holds, ${held || 'nothing'}, is not a group's factors of ${title}`);
}

function parseMetadata(path: string, text: string | undefined): FactorMetadata {
  try {
    return metadataSchema.parse(JSON.parse(text ?? ''));
  } catch {
    throw new FactorMismatchError(path, 'it has no readable "mobe" metadata');
  }
}
