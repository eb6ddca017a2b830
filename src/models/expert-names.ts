/** The names of expert tensors in checkpoints of all families. */
import { floatBytes } from '../checkpoint/dtype.js';
import type { Encoding } from '../checkpoint/encoding.js';
import type { TensorInfo } from '../checkpoint/header.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { isQuantised, matrixName, quantisedMatrix } from '../checkpoint/quantisation.js';
import { type MatrixStack, matrixStack } from '../checkpoint/quantised/stack.js';
import { type MatrixPlace, plainMatrix, type StoredMatrix } from '../checkpoint/stored-matrix.js';
import { UnequalExpertError, UnsupportedLayoutError } from '../errors.js';
import type { Projection } from './family.js';

/** One tensor for each expert. Mixtral, MiniMax and others name the projections w1, w3 and w2. */
const SEPARATE =
  /^((?:.+\.)?layers\.(\d+)\.(?:mlp|block_sparse_moe|feed_forward)\.)experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$/;
/** All experts of a layer in one tensor: gate and up (n, 2p, d), and down (n, d, p), or the transpose of each. */
const FUSED = /^((?:.+\.)?layers\.(\d+)\.(?:mlp|block_sparse_moe|feed_forward)\.)experts\.(gate_up_proj|down_proj)$/;

/**
 * The most experts of a layer. Published models have up to 512. A damaged shape must not be able to ask for any number of
 * objects.
 */
const MAX_EXPERTS = 65_536;

const PROJECTION: Readonly<Record<string, Projection>> = { w1: 'gate_proj', w3: 'up_proj', w2: 'down_proj' };

/** An expert matrix and its place in the model. */
export interface FoundExpert {
  /** The prefix of the layer's tensor names, e.g. `model.layers.3.mlp.` */
  readonly prefix: string;
  readonly layer: number;
  readonly expert: number;
  readonly projection: Projection;
  readonly matrix: StoredMatrix;
}

/**
 * The expert matrices in a tensor; none if it is not an expert tensor. Throws an `InputError` if its shape or dtype is wrong.
 */
export function expertsOf(tensor: TensorInfo, checkpoint: Checkpoint): FoundExpert[] {
  const standard = matrixName(tensor.name);
  const separate = SEPARATE.exec(standard);
  if (separate) {
    const [, prefix, layer, expert, name] = separate as unknown as [string, string, string, string, string];
    const projection = PROJECTION[name] ?? (name as Projection);
    const isPlain = standard === tensor.name && !isQuantised(tensor);
    const matrix = isPlain ? floatMatrix(tensor) : quantisedMatrix(tensor, checkpoint);
    return [{ prefix, layer: Number(layer), expert: Number(expert), projection, matrix }];
  }
  const fused = FUSED.exec(standard);
  if (!fused) return [];
  const [, prefix, layer, name] = fused as unknown as [string, string, string, FusedName];
  return slices(tensor, name, prefix, checkpoint).map((it) => ({ prefix, layer: Number(layer), ...it }));
}

type FusedName = 'gate_up_proj' | 'down_proj';

function floatMatrix(tensor: TensorInfo): StoredMatrix {
  const { name, file, shape } = tensor;
  if (shape.length !== 2) throw new UnequalExpertError(name, file, `has shape [${shape}], not a matrix`);
  return plainMatrix(tensor);
}

/** The matrices of a fused tensor, in stored order. */
function slices(
  tensor: TensorInfo,
  fused: FusedName,
  prefix: string,
  checkpoint: Checkpoint,
): Array<Pick<FoundExpert, 'expert' | 'projection' | 'matrix'>> {
  const { name, file, shape } = tensor;
  if (shape.length !== 3 && shape.length !== 4)
    throw new UnequalExpertError(name, file, `has shape [${shape}], not [experts, rows, cols]`);
  if ((shape[0] as number) > MAX_EXPERTS || shape.includes(0))
    throw new UnequalExpertError(name, file, `has shape [${shape}]: more than ${MAX_EXPERTS} experts, or empty ones`);
  const stack = matrixStack(tensor, checkpoint);
  const transposed = isTransposed(tensor, prefix, checkpoint);
  const projections: readonly Projection[] = fused === 'down_proj' ? ['down_proj'] : ['gate_proj', 'up_proj'];
  const split: Split = {
    transposed,
    count: projections.length,
    interleaved: projections.length > 1 && interleavesGateAndUp(checkpoint),
    // gpt-oss's MXFP4 tensors are the transpose of its float tensors, and the place is that in the float tensor.
    placedTransposed: transposed || name !== matrixName(name),
  };
  return Array.from({ length: stack.count * projections.length }, (_, i) => {
    const expert = Math.floor(i / projections.length);
    const projection = projections[i % projections.length] as Projection;
    const matrixOf = `${prefix}experts.${expert}.${projection}.weight`;
    return { expert, projection, matrix: slice(stack, expert, i % projections.length, split, matrixOf, name) };
  });
}

/** The way in which a matrix of a stack is divided into projections. */
interface Split {
  readonly transposed: boolean;
  readonly count: number;
  /** Rows (columns, if transposed) of gate and up alternate. Otherwise gate is the first half of them. */
  readonly interleaved: boolean;
  /** The tensor of the matrix's place holds the transpose. */
  readonly placedTransposed: boolean;
}

function slice(
  stack: MatrixStack,
  expert: number,
  part: number,
  { transposed, count, interleaved, placedTransposed }: Split,
  name: string,
  tensor: string,
): StoredMatrix {
  const [outputs, cols] = transposed ? [stack.cols, stack.rows] : [stack.rows, stack.cols];
  const rows = outputs / count;
  const [first, step] = interleaved ? [part, count] : [part * rows, 1];
  const start = expert * outputs * cols;
  const steps = placedTransposed ? { row: step, column: outputs } : { row: step * cols, column: 1 };
  const place: MatrixPlace = {
    tensor: matrixName(tensor),
    element: start + first * (placedTransposed ? 1 : cols),
    ...((placedTransposed || interleaved) && { steps }),
  };
  const { encoding } = stack;
  const { file, start: from, end } = stack.data(expert);
  if (encoding.kind === 'float' && !transposed && !interleaved) {
    const bytes = rows * cols * floatBytes(encoding.dtype);
    const own = { file, start: from + part * bytes, end: from + (part + 1) * bytes };
    return { name, rows, cols, encoding, data: own, place };
  }
  const view: Encoding = { kind: 'view', of: encoding, rows: stack.rows, cols: stack.cols, first, step, transposed };
  const data = { file, start: from, end };
  const scales = stack.scales && { scales: stack.scales(expert) };
  return { name, rows, cols, encoding: view, data, ...scales, place };
}

/**
 * Reads the orientation of fused tensors. gate_up (n, 2p, d) with down (n, d, p) multiplies from the left, like separate
 * experts. (n, d, 2p) with (n, p, d), as in Llama 4, Qwen3-VL-MoE and gpt-oss, multiplies from the right. The two shapes
 * together show which it is.
 */
function isTransposed({ name, file }: TensorInfo, prefix: string, checkpoint: Checkpoint): boolean {
  const sides = (fused: FusedName): readonly [number, number] => {
    const base = `${prefix}experts.${fused}`;
    const { tensors } = checkpoint;
    const shape = tensors.get(base)?.shape ?? tensors.get(`${base}_blocks`)?.shape;
    if (!shape) throw new UnsupportedLayoutError(name, file, `there is no ${base} beside it`);
    const [, rows = 0, cols = 0, bytes] = shape;
    return [rows, bytes === undefined ? cols : cols * bytes * 2];
  };
  const [gateUp, down] = [sides('gate_up_proj'), sides('down_proj')];
  if (gateUp[0] === 2 * down[1] && gateUp[1] === down[0]) return false;
  if (gateUp[1] === 2 * down[0] && gateUp[0] === down[1]) return true;
  throw new UnsupportedLayoutError(
    name,
    file,
    `an expert's gate_up_proj is [${gateUp}] and its down_proj [${down}]; [2p, d] with [d, p] is read, and [d, 2p] with [p, d]`,
  );
}

/** Whether gate and up alternate, as in gpt-oss. Shapes do not show it, so `model_type` decides. */
const interleavesGateAndUp = ({ config }: Checkpoint): boolean =>
  [config, config.text_config].some((it) => (it as Checkpoint['config'] | undefined)?.model_type === 'gpt_oss');
