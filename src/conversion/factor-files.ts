/** Factor files, which `fit` writes and `export` reads: one safetensors file for each group, with σ folded into its factors. */
import { resolve } from 'node:path';
import { z } from 'zod';
import { isFloatDtype } from '../checkpoint/dtype.js';
import { factorDtypeSchema } from '../checkpoint/factor-dtype.js';
import type { TensorInfo, TensorSpec } from '../checkpoint/header.js';
import { openShard } from '../checkpoint/open-checkpoint.js';
import { FactorMismatchError, NotACheckpointError, UnsupportedDtypeError } from '../errors.js';
import { fileIn } from '../location.js';
import { type FactorForm, hasCodes, partsOf, plainDtypes, storedFactors } from '../methods/factor-storage.js';
import type { GroupShape, Method, MethodProblem } from '../methods/method.js';
import { methodRecord, namedMethod } from '../methods/registry.js';
import { PROJECTIONS } from '../models/family.js';
import { layoutFile, type ShardLayout } from '../output/layout.js';
import { type Files, LocalFiles, type SourceFolder } from '../sources/files.js';
import { checkSlices } from './fit-slices.js';
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
  /** Absent if no factor is quantised. */
  stored: z
    .strictObject({
      /** The dtype of the factors that are never quantised. */
      dtype: z.enum(['F32', 'F16', 'BF16']),
      own: factorDtypeSchema,
      shared: factorDtypeSchema,
      /** Shapes of the factors, by name; those of experts are stacked as (n, …). Packed codes do not show them. */
      shapes: z.record(z.string(), z.array(z.int().positive()).readonly()),
    })
    .optional(),
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
  form: FactorForm,
  { sourceFingerprint, settings, report }: Pick<FactorMetadata, 'sourceFingerprint' | 'settings' | 'report'>,
): Record<string, string> {
  const { method, problem, stored, dtype } = form;
  const kind = { version: 1, ...methodRecord(method), ...method.details(problem) };
  const quantised = hasCodes(stored) && { stored: { dtype, ...stored, shapes: shapesOf(form) } };
  return { [METADATA_KEY]: JSON.stringify({ ...kind, sourceFingerprint, settings, ...quantised, report }) };
}

/** The shapes of a group's factors, by name; those of experts are stacked as (n, …). */
function shapesOf({ method, problem }: MethodProblem): Record<string, readonly number[]> {
  const { shared, byExpert } = method.stores(problem);
  return Object.fromEntries([
    ...byExpert.map(({ name, shape }) => [name, [problem.experts, ...shape]] as const),
    ...shared.map(({ name, shape }) => [name, shape] as const),
  ]);
}

/** The size of a header. It is written before the errors are known, so it has room for the metadata. */
const FACTOR_HEADER_BYTES = 4096;
/** The header of quantised factors has more tensors, and says more of them. */
const QUANTISED_HEADER_BYTES = 5120;

/**
 * The tensors of a factor file: first the factors of the experts, stacked as (n, …), then the shared factors. For down_proj
 * they are factors of the transposed weights.
 */
export function factorTensors(form: FactorForm): TensorSpec[] {
  const { experts } = form.problem;
  const { shared, byExpert } = storedFactors(form);
  return [
    ...partsOf(byExpert).map(({ key: name, dtype, shape, bytes }) => ({
      ...{ name, dtype, shape: [experts, ...shape], bytes: experts * bytes },
    })),
    ...partsOf(shared).map(({ key: name, dtype, shape, bytes }) => ({ name, dtype, shape, bytes })),
  ];
}

/**
 * The name under which an `Output` receives a tensor of a factor file. It includes the file, because all files have the same
 * tensors.
 */
export const factorTensorName = (group: GroupKey, factor: string): string => `${factorFileName(group)}:${factor}`;

/** The layout of a group's file. The metadata with the errors later replaces the spaces at the end of its header. */
export function factorLayout(group: GroupPlan): ShardLayout {
  const headerBytes = hasCodes(group.stored) ? QUANTISED_HEADER_BYTES : FACTOR_HEADER_BYTES;
  const layout = layoutFile(factorFileName(group), factorTensors(group), {}, headerBytes);
  return { ...layout, tensors: layout.tensors.map((it) => ({ ...it, name: factorTensorName(group, it.name) })) };
}

/** A factor file that was opened and checked. */
export interface FactorFile extends FactorForm {
  readonly path: string;
  readonly metadata: FactorMetadata;
  /** The tensors of `factorTensors`, by name. */
  readonly tensors: Readonly<Record<string, TensorInfo>>;
}

/**
 * Opens all factor files of a folder, sorted by layer, projection and group. Throws `NotACheckpointError` if there are none,
 * `MissingSlicesError` if slices of its fit are missing, and as `openFactorFile` does.
 * @param source a local path, or a folder with an object that reads it
 */
export async function openFactorFolder(source: string | SourceFolder): Promise<FactorFile[]> {
  const { folder, files } = typeof source === 'string' ? { folder: resolve(source), files: new LocalFiles() } : source;
  const held = (await files.list(folder)).map(({ path }) => path);
  const names = held.filter(isFactorFile);
  if (names.length === 0)
    throw new NotACheckpointError(folder, 'it has no factor files (layer-000.gate_proj.safetensors, …)');
  const opened: FactorFile[] = [];
  try {
    await checkSlices({ folder, files }, held);
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
  const { dtype, stored } = dtypesIn(path, metadata, held);
  const form = { method, problem, dtype, stored };
  const named = factorTensors(form).map((spec) => {
    const tensor = held.find(({ name }) => name === spec.name);
    if (!tensor || String(tensor.shape) !== String(spec.shape)) throw unlikeFactors(path, method, held);
    if (tensor.dtype !== spec.dtype)
      throw new FactorMismatchError(
        path,
        hasCodes(stored)
          ? `"${spec.name}" is ${tensor.dtype}, and its metadata asks for ${spec.dtype}`
          : 'its tensors are of different dtypes',
      );
    return [spec.name, tensor] as const;
  });
  return { path, metadata, ...form, tensors: Object.fromEntries(named) };
}

/** The dtypes of a file's factors: those in its metadata, if factors are quantised. */
function dtypesIn(
  path: string,
  { stored }: FactorMetadata,
  tensors: readonly TensorInfo[],
): Pick<FactorForm, 'dtype' | 'stored'> {
  if (stored) return { dtype: stored.dtype, stored: { own: stored.own, shared: stored.shared } };
  const dtype = tensors[0]?.dtype ?? '';
  if (!isFloatDtype(dtype)) throw new UnsupportedDtypeError(tensors[0]?.name ?? '', path, dtype);
  return { dtype, stored: plainDtypes(dtype) };
}

function findProblem(
  path: string,
  method: Method,
  tensors: readonly TensorInfo[],
  metadata: FactorMetadata,
): GroupShape {
  const shapes = {
    ...Object.fromEntries(tensors.map(({ name, shape }) => [name, shape])),
    ...metadata.stored?.shapes,
  };
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
