/** The names of expert tensors in checkpoints of all families. */
import { floatBytes, isFloatDtype } from '../checkpoint/dtype.js';
import type { TensorInfo } from '../checkpoint/header.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { isQuantised, quantisedMatrix } from '../checkpoint/quantisation.js';
import { plainMatrix, type StoredMatrix } from '../checkpoint/stored-matrix.js';
import { UnequalExpertError, UnsupportedLayoutError } from '../errors.js';
import type { Projection } from './family.js';

/** One tensor for each expert. Mixtral, MiniMax and others name the projections w1, w3 and w2. */
const SEPARATE =
  /^((?:.+\.)?layers\.(\d+)\.(?:mlp|block_sparse_moe|feed_forward)\.)experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight(?:_packed)?$/;
/** All experts of a layer in one tensor: gate above up (n, 2p, d), and down (n, d, p). */
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
  const separate = SEPARATE.exec(tensor.name);
  if (separate) {
    const [, prefix, layer, expert, name] = separate as unknown as [string, string, string, string, string];
    const projection = PROJECTION[name] ?? (name as Projection);
    const matrix = isQuantised(tensor) ? quantisedMatrix(tensor, checkpoint) : floatMatrix(tensor);
    return [{ prefix, layer: Number(layer), expert: Number(expert), projection, matrix }];
  }
  const fused = FUSED.exec(tensor.name);
  if (!fused) return [];
  const [, prefix, layer, name] = fused as unknown as [string, string, string, 'gate_up_proj' | 'down_proj'];
  const projections: readonly Projection[] = name === 'down_proj' ? ['down_proj'] : ['gate_proj', 'up_proj'];
  return slices(tensor, projections, prefix, checkpoint).map((it) => ({ prefix, layer: Number(layer), ...it }));
}

function floatMatrix(tensor: TensorInfo): StoredMatrix {
  const { name, file, shape } = tensor;
  if (shape.length !== 2) throw new UnequalExpertError(name, file, `has shape [${shape}], not a matrix`);
  return plainMatrix(tensor);
}

/** The matrices of a fused tensor, each a range of it, in stored order. */
function slices(
  tensor: TensorInfo,
  projections: readonly Projection[],
  prefix: string,
  checkpoint: Checkpoint,
): Array<Pick<FoundExpert, 'expert' | 'projection' | 'matrix'>> {
  const { name, file, dtype, shape, start } = tensor;
  if (shape.length !== 3) throw new UnequalExpertError(name, file, `has shape [${shape}], not [experts, rows, cols]`);
  if (!isFloatDtype(dtype))
    throw new UnsupportedLayoutError(name, file, `they are ${dtype}; fused ones are read from F32, F16 and BF16`);
  checkOrientation(tensor, prefix, checkpoint);
  const [experts, allRows, cols] = shape as [number, number, number];
  if (experts > MAX_EXPERTS || shape.includes(0))
    throw new UnequalExpertError(name, file, `has shape [${shape}]: more than ${MAX_EXPERTS} experts, or empty ones`);
  const rows = allRows / projections.length;
  return Array.from({ length: experts * projections.length }, (_, i) => {
    const expert = Math.floor(i / projections.length);
    const projection = projections[i % projections.length] as Projection;
    const element = i * rows * cols;
    const matrix: StoredMatrix = {
      name: `${prefix}experts.${expert}.${projection}.weight`,
      rows,
      cols,
      encoding: { kind: 'float', dtype },
      data: {
        file,
        start: start + element * floatBytes(dtype),
        end: start + (element + rows * cols) * floatBytes(dtype),
      },
      place: { tensor: name, element },
    };
    return { expert, projection, matrix };
  });
}

/**
 * Checks the orientation of fused tensors. gate_up (n, 2p, d) with down (n, d, p) multiplies from the left, like separate
 * experts. (n, d, 2p) with (n, p, d), as in Llama 4 and gpt-oss, multiplies from the right and is refused. The two shapes
 * together show which it is.
 */
function checkOrientation({ name, file }: TensorInfo, prefix: string, { tensors }: Checkpoint): void {
  const gateUp = tensors.get(`${prefix}experts.gate_up_proj`)?.shape;
  const down = tensors.get(`${prefix}experts.down_proj`)?.shape;
  if (!gateUp || !down) {
    const missing = gateUp ? 'down_proj' : 'gate_up_proj';
    throw new UnsupportedLayoutError(name, file, `there is no ${prefix}experts.${missing} beside it`);
  }
  const [, gateUpRows = 0, gateUpCols = 0] = gateUp;
  const [, downRows = 0, downCols = 0] = down;
  if (gateUpRows === 2 * downCols && gateUpCols === downRows) return;
  throw new UnsupportedLayoutError(
    name,
    file,
    `gate_up_proj is [${gateUp}] and down_proj [${down}]; only [n, 2p, d] with [n, d, p] is read`,
  );
}
