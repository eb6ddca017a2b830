/** Factor files of the MoBE reference implementation. Each holds the three parameters of one group of experts. */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { isFloatDtype } from '../checkpoint/dtype.js';
import type { TensorInfo } from '../checkpoint/header.js';
import { TorchFileError, UnsupportedDtypeError } from '../errors.js';
import { openTorchFile } from './open-torch-file.js';

/** A name has layer and projection, and the group if the layer's experts were divided into groups. */
export const WAB_FILE_NAME = /^model_layers_(\d+)_mlp_(gate_proj|up_proj)(?:_group(\d+))?_WAB\.pth$/;

/** The parts of a file name. */
export interface WabFileName {
  readonly layer: number;
  readonly projection: 'gate_proj' | 'up_proj';
  /** Undefined if the layer is one group. */
  readonly group: number | undefined;
}

/** The parts of a factor file's name; undefined for other names. */
export function parseWabFileName(name: string): WabFileName | undefined {
  const match = WAB_FILE_NAME.exec(name);
  if (!match) return undefined;
  const [, layer, projection, group] = match;
  return {
    layer: Number(layer),
    projection: projection as WabFileName['projection'],
    group: group === undefined ? undefined : Number(group),
  };
}

/** The factor files in a folder, sorted by layer, projection and group. Ignores other files. Throws a `TorchFileError`. */
export async function listWabFiles(folder: string): Promise<Array<WabFileName & { readonly path: string }>> {
  const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    const reason = error.code === 'ENOENT' ? 'there is no such folder' : `it cannot be listed (${error.code})`;
    throw new TorchFileError(folder, reason, 'Give the folder that holds model_layers_…_WAB.pth.');
  });
  return names
    .flatMap((name) => {
      const parsed = parseWabFileName(name);
      return parsed ? [{ ...parsed, path: join(folder, name) }] : [];
    })
    .sort(
      (a, b) =>
        a.layer - b.layer || a.projection.localeCompare(b.projection, 'en') || (a.group ?? -1) - (b.group ?? -1),
    );
}

/**
 * One group's factors: Ŵ = A·f(ΣαB), where α is the softmax of each row of the logits.
 * A: (n, p, r), B: (m, r, d), logits: (n, m), all F32, all F16 or all BF16.
 */
export interface WabFile {
  readonly A: TensorInfo;
  readonly B: TensorInfo;
  readonly logits: TensorInfo;
}

const PARAMETERS = ['A_params', 'B_params', 'w_params'] as const;

const REMEDY = 'Give a *_WAB.pth that the MoBE reference wrote.';

/**
 * Opens a factor file and checks its shapes.
 * @throws TorchFileError, UnsupportedDtypeError, and the errors of `openTorchFile`
 */
export async function openWabFile(path: string): Promise<WabFile> {
  const tensors = await openTorchFile(path);
  const [A, B, logits] = PARAMETERS.map((name) => {
    const tensor = tensors.find((it) => it.name === name);
    if (!tensor) throw new TorchFileError(path, `it has no tensor "${name}"`, REMEDY);
    return tensor;
  }) as [TensorInfo, TensorInfo, TensorInfo];
  const other = tensors.find(({ name }) => !PARAMETERS.some((it) => it === name));
  if (other) throw new TorchFileError(path, `it also has a tensor "${other.name}", whose meaning is not known`, REMEDY);
  const [n, p, r] = A.shape;
  const [m, rank, d] = B.shape;
  const isWhole = [n, p, r, m, rank, d].every((size) => size !== undefined && size > 0);
  const fits = A.shape.length === 3 && B.shape.length === 3 && rank === r && String(logits.shape) === String([n, m]);
  if (!isWhole || !fits)
    throw new TorchFileError(
      path,
      `A_params [${A.shape}], B_params [${B.shape}] and w_params [${logits.shape}] do not fit together`,
      REMEDY,
    );
  if (!isFloatDtype(A.dtype)) throw new UnsupportedDtypeError('A_params', path, A.dtype);
  if (B.dtype !== A.dtype || logits.dtype !== A.dtype)
    throw new TorchFileError(path, `its tensors are ${A.dtype}, ${B.dtype} and ${logits.dtype}`, REMEDY);
  return { A, B, logits };
}
