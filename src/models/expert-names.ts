/** Finds the matrices of experts in a checkpoint's tensors. published-layouts.ts has the names. */
import { floatBytes } from '../checkpoint/dtype.js';
import type { TensorInfo } from '../checkpoint/header.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { isQuantised, matrixName, quantisedMatrix } from '../checkpoint/quantisation.js';
import { type MatrixStack, matrixStack } from '../checkpoint/quantised/stack.js';
import { plainMatrix, type StoredMatrix } from '../checkpoint/stored-matrix.js';
import { UnequalExpertError, UnsupportedLayoutError } from '../errors.js';
import type { Projection } from './family.js';
import { languageConfig } from './language-config.js';
import { type Division, placeOfPart, viewOfPart } from './matrix-part.js';
import { type ExpertName, expertName } from './published-layouts.js';

/**
 * The most experts of a layer. Published models have up to 512. A damaged shape must not be able to ask for any number of
 * objects.
 */
const MAX_EXPERTS = 65_536;

/** An expert matrix and its place in the model. */
export interface FoundExpert extends Pick<ExpertName, 'prefix' | 'stack' | 'layer'> {
  readonly expert: number;
  readonly projection: Projection;
  readonly matrix: StoredMatrix;
}

/**
 * The expert matrices in a tensor; none if it is not an expert tensor. Throws an `InputError` if its shape or dtype is wrong.
 */
export function expertsOf(tensor: TensorInfo, checkpoint: Checkpoint): FoundExpert[] {
  const standard = matrixName(tensor.name);
  const found = expertName(standard);
  if (!found) return [];
  const { prefix, stack, layer, expert, projections, layout } = found;
  if (expert !== undefined) {
    const isPlain = standard === tensor.name && !isQuantised(tensor);
    const matrix = isPlain ? floatMatrix(tensor) : quantisedMatrix(tensor, checkpoint);
    return [{ prefix, stack, layer, expert, projection: projections[0] as Projection, matrix }];
  }
  // A dense feed-forward module has the same names as one of experts. Its tensors are matrices.
  if (layout.modules && tensor.shape.length < 3) return [];
  return slices(tensor, found, checkpoint).map((it) => ({ prefix, stack, layer, ...it }));
}

function floatMatrix(tensor: TensorInfo): StoredMatrix {
  const { name, file, shape } = tensor;
  if (shape.length !== 2) throw new UnequalExpertError(name, file, `has shape [${shape}], not a matrix`);
  return plainMatrix(tensor);
}

/** The matrices of a fused tensor, in stored order. */
function slices(
  fused: TensorInfo,
  place: ExpertName,
  checkpoint: Checkpoint,
): Array<Pick<FoundExpert, 'expert' | 'projection' | 'matrix'>> {
  const { name, file } = fused;
  const { prefix, projections, layout } = place;
  const shape = stackShape(fused, place, checkpoint);
  if (shape.length !== 3 && shape.length !== 4)
    throw new UnequalExpertError(name, file, `has shape [${shape}], not [experts, rows, cols]`);
  if ((shape[0] as number) > MAX_EXPERTS || shape.includes(0))
    throw new UnequalExpertError(name, file, `has shape [${shape}]: more than ${MAX_EXPERTS} experts, or empty ones`);
  const stack = matrixStack({ ...fused, shape }, checkpoint);
  const transposed = isTransposed(fused, place, checkpoint);
  const count = projections.length;
  const division = { count, interleaved: count > 1 && alternates(layout.alternating, checkpoint), transposed };
  // gpt-oss's MXFP4 tensors are the transpose of its float tensors, and the place is that in the float tensor.
  const placed = { ...division, transposed: transposed || name !== matrixName(name) };
  return Array.from({ length: stack.count * count }, (_, i) => {
    const expert = Math.floor(i / count);
    const projection = projections[i % count] as Projection;
    const matrixOf = `${prefix}experts.${expert}.${projection}.weight`;
    return { expert, projection, matrix: slice(stack, expert, i % count, { division, placed }, matrixOf, name) };
  });
}

/** The shape of a fused tensor by experts: (n, rows, cols), also if it is stored as (n·rows, cols). */
function stackShape(
  { name, file, shape }: TensorInfo,
  { prefix, layout: { router } }: ExpertName,
  { tensors }: Checkpoint,
): readonly number[] {
  if (router === undefined || shape.length !== 2) return shape;
  const [rows, cols] = shape as [number, number];
  const experts = tensors.get(`${prefix}${router}`)?.shape[0];
  if (!experts || rows % experts !== 0)
    throw new UnsupportedLayoutError(
      name,
      file,
      `it has ${rows} rows for all experts, and ${prefix}${router} does not give a number of experts that divides them`,
    );
  return [experts, rows / experts, cols];
}

function slice(
  stack: MatrixStack,
  expert: number,
  part: number,
  { division, placed }: { readonly division: Division; readonly placed: Division },
  name: string,
  tensor: string,
): StoredMatrix {
  const { count, interleaved, transposed } = division;
  const [outputs, cols] = transposed ? [stack.cols, stack.rows] : [stack.rows, stack.cols];
  const size = { rows: outputs / count, cols };
  const place = placeOfPart(matrixName(tensor), expert * outputs * cols, placed, part, size);
  const { encoding } = stack;
  const { file, start: from, end } = stack.data(expert);
  if (encoding.kind === 'float' && !transposed && !interleaved) {
    const bytes = size.rows * cols * floatBytes(encoding.dtype);
    const own = { file, start: from + part * bytes, end: from + (part + 1) * bytes };
    return { name, ...size, encoding, data: own, place };
  }
  const scales = stack.scales && { scales: stack.scales(expert) };
  const data = { file, start: from, end };
  return { name, ...size, encoding: viewOfPart(encoding, division, part, size), data, ...scales, place };
}

/**
 * Reads the orientation of fused tensors. gate_up (n, 2p, d) with down (n, d, p) multiplies from the left, like separate
 * experts. (n, d, 2p) with (n, p, d), as in Llama 4, Qwen3-VL-MoE and gpt-oss, multiplies from the right. The two shapes
 * together show which it is. Where gate and up are not side by side, the layout decides.
 */
function isTransposed(
  { name, file }: TensorInfo,
  { prefix, projections, layout }: ExpertName,
  { tensors }: Checkpoint,
): boolean {
  const { gateUp, up, down } = layout;
  const shapeOf = (own: string): readonly number[] | undefined =>
    (tensors.get(`${prefix}${own}`) ?? tensors.get(`${prefix}${own}_blocks`))?.shape;
  const separate = up !== undefined && shapeOf(up) !== undefined;
  if (gateUp === undefined || separate) return layout.transposed?.includes(projections[0] as Projection) ?? false;
  const sides = (own: string): readonly [number, number] => {
    const shape = shapeOf(own);
    if (!shape) throw new UnsupportedLayoutError(name, file, `there is no ${prefix}${own} beside it`);
    const [, rows = 0, cols = 0, bytes] = shape;
    return [rows, bytes === undefined ? cols : cols * bytes * 2];
  };
  const [both, one] = [sides(gateUp), sides(down)];
  if (both[0] === 2 * one[1] && both[1] === one[0]) return false;
  if (both[1] === 2 * one[0] && both[0] === one[1]) return true;
  const [label, other] = [gateUp, down].map((it) => it.replace(/^experts\.|\.weight$/g, ''));
  throw new UnsupportedLayoutError(
    name,
    file,
    `an expert's ${label} is [${both}] and its ${other} [${one}]; [2p, d] with [d, p] is read, and [d, 2p] with [p, d]`,
  );
}

/** Whether gate and up alternate. Shapes do not show it. */
const alternates = (alternating: ExpertName['layout']['alternating'], { config }: Checkpoint): boolean =>
  alternating === 'always' ||
  [config, languageConfig(config)].some(({ model_type: type }) => alternating?.includes(String(type)));
