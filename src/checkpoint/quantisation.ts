/**
 * Finds the tensors that together make one quantised matrix. Two layouts are decoded:
 *
 * - FP8 with scales (DeepSeek-V3, Kimi-K2, Qwen3-FP8): `x.weight` in F8_E4M3 or F8_E5M2, and `x.weight_scale_inv` with one
 *   factor for each block of 128 × 128, or `x.weight_scale` with one for each row or one for all (compressed-tensors). Weights
 *   are multiplied by `weight_scale_inv` too, despite its name.
 * - INT4 of compressed-tensors, "pack-quantized" (Kimi-K2-Thinking): `x.weight_packed`, `x.weight_scale`, `x.weight_shape`.
 *
 * The parts may lie in different shards.
 */
import { MissingScaleError, QuantisedShapeError, UnsupportedQuantisationError } from '../errors.js';
import type { Encoding, ScaleDtype } from './encoding.js';
import type { TensorInfo } from './header.js';
import type { Checkpoint } from './open-checkpoint.js';
import type { StoredMatrix } from './stored-matrix.js';

/** The block size of DeepSeek-V3 and later models. `weight_block_size` in the config overrides it. */
const DEFAULT_BLOCK = [128, 128] as const;

const PACKED = /\.weight_packed$/;
/** int4 values in an I32 word of `weight_packed` */
const VALUES_PER_WORD = 8;
/** Names of tensors that belong to `x.weight` or `x.weight_packed`: scales, shape, and scales of activations. */
const ATTACHMENT = /^(.+)\.(?:weight_scale_inv|weight_scale|weight_shape|input_scale|activation_scale)$/;

/** The part of `quantization_config` that is used. */
interface QuantisationConfig {
  readonly weight_block_size?: unknown;
  readonly config_groups?: Readonly<
    Record<string, { readonly weights?: Readonly<Record<string, unknown>> | null } | null>
  >;
}

/** Keys of the quantisation entry in a config. Multimodal models nest the one of their language model. */
export const QUANTISATION_KEYS = [
  'quantization_config',
  'compression_config',
  'text_config.quantization_config',
] as const;

/** Whether a dtype is 8-bit float codes of weights. */
export const isFp8 = (dtype: string): dtype is 'F8_E4M3' | 'F8_E5M2' => dtype === 'F8_E4M3' || dtype === 'F8_E5M2';

/** Whether a tensor holds the data of a quantised matrix. */
export const isQuantised = ({ name, dtype }: TensorInfo): boolean => isFp8(dtype) || PACKED.test(name);

/** The data tensor that a scale or a shape belongs to; undefined for any other tensor. */
export function attachedTo({ name }: TensorInfo, { tensors }: Checkpoint): TensorInfo | undefined {
  const base = ATTACHMENT.exec(name)?.[1];
  const data = base === undefined ? undefined : (tensors.get(`${base}.weight`) ?? tensors.get(`${base}.weight_packed`));
  return data && isQuantised(data) ? data : undefined;
}

/** The config's quantisation entry, under any of `QUANTISATION_KEYS`. */
export function quantisationConfig(config: Checkpoint['config']): QuantisationConfig | undefined {
  const nested = config.text_config as Checkpoint['config'] | undefined;
  return (config.quantization_config ?? config.compression_config ?? nested?.quantization_config) as
    | QuantisationConfig
    | undefined;
}

/**
 * The matrix whose data this tensor holds. Throws a `MissingScaleError`, a `QuantisedShapeError` if the scales do not fit, or an
 * `UnsupportedQuantisationError`.
 */
export function quantisedMatrix(data: TensorInfo, checkpoint: Checkpoint): StoredMatrix {
  if (data.shape.length !== 2)
    throw new UnsupportedQuantisationError(
      data.name,
      data.file,
      `it is ${data.dtype} of shape [${data.shape}], not a matrix`,
    );
  return isFp8(data.dtype) ? fp8Matrix(data, data.dtype, checkpoint) : packedMatrix(data, checkpoint);
}

function fp8Matrix(data: TensorInfo, dtype: 'F8_E4M3' | 'F8_E5M2', checkpoint: Checkpoint): StoredMatrix {
  const names = [`${data.name}_scale_inv`, `${data.name}_scale`];
  const scales = names.map((name) => checkpoint.tensors.get(name)).find((it) => it !== undefined);
  if (!scales) throw new MissingScaleError(data.name, data.file, names[0] as string);
  const [rows, cols] = data.shape as [number, number];
  const [blockRows, blockCols] = blockSize(data, scales, checkpoint);
  const encoding: Encoding = { kind: 'fp8', dtype, scaleDtype: scaleDtype(scales), blockRows, blockCols };
  return { name: data.name, rows, cols, encoding, data, scales, place: { tensor: data.name, element: 0 } };
}

/** The block size that fits the scales' shape. The configured one is tried first. */
function blockSize(data: TensorInfo, scales: TensorInfo, { config }: Checkpoint): readonly [number, number] {
  const [rows, cols] = data.shape as [number, number];
  const configured = quantisationConfig(config)?.weight_block_size;
  const isPair =
    Array.isArray(configured) && configured.length === 2 && configured.every((it) => Number.isInteger(it) && it > 0);
  const blocks = isPair ? (configured as [number, number]) : DEFAULT_BLOCK;
  const [scaleRows = 1, scaleCols = 1] = scales.shape;
  const fits = [blocks, [1, cols] as const, [rows, cols] as const].find(
    ([r, c]) => scales.shape.length <= 2 && Math.ceil(rows / r) === scaleRows && Math.ceil(cols / c) === scaleCols,
  );
  if (!fits) {
    throw new QuantisedShapeError(
      data.name,
      data.file,
      `it is [${data.shape}], so in blocks of ${blocks.join(' × ')} it has [${Math.ceil(rows / blocks[0])},${Math.ceil(cols / blocks[1])}] scales; ${scales.name} has [${scales.shape}]`,
    );
  }
  return fits;
}

function packedMatrix(data: TensorInfo, checkpoint: Checkpoint): StoredMatrix {
  const base = data.name.slice(0, -'_packed'.length);
  const unsupported = (what: string) => new UnsupportedQuantisationError(data.name, data.file, what);
  const part = (suffix: string): TensorInfo | undefined => checkpoint.tensors.get(`${base}_${suffix}`);
  let configured: unknown;
  for (const group of Object.values(quantisationConfig(checkpoint.config)?.config_groups ?? {})) {
    const { num_bits: bits = 4, type = 'int', symmetric = true, group_size: size } = group?.weights ?? {};
    if (bits !== 4 || type !== 'int' || symmetric !== true)
      throw unsupported(
        `the config says ${symmetric === true ? '' : 'asymmetric '}${String(type)} of ${String(bits)} bits`,
      );
    configured = size;
  }
  if (checkpoint.tensors.has(base)) throw unsupported(`"${base}" is there beside it`);
  if (data.dtype !== 'I32') throw unsupported(`it is packed in ${data.dtype}, not in I32`);
  for (const suffix of ['zero_point', 'g_idx']) if (part(suffix)) throw unsupported(`it comes with ${base}_${suffix}`);
  const scales = part('scale');
  if (!scales) throw new MissingScaleError(data.name, data.file, `${base}_scale`);
  const [rows, words] = data.shape as [number, number];
  // If rows do not fill their last word, weight_shape says so. It is compared when the data is read.
  const cols = words * VALUES_PER_WORD;
  const [scaleRows, scaleCols] = scales.shape;
  const groupSize = typeof configured === 'number' && configured > 0 ? configured : Math.ceil(cols / (scaleCols || 1));
  if (scales.shape.length !== 2 || scaleRows !== rows || Math.ceil(cols / groupSize) !== scaleCols)
    throw new QuantisedShapeError(
      data.name,
      data.file,
      `it holds [${rows},${cols}] values; ${scales.name} has [${scales.shape}]`,
    );
  const shape = part('shape');
  if (shape && (String(shape.shape) !== '2' || !/^I(32|64)$/.test(shape.dtype)))
    throw new QuantisedShapeError(
      data.name,
      data.file,
      `${shape.name} is ${shape.dtype} [${shape.shape}], not two integers`,
    );
  return {
    name: base,
    rows,
    cols,
    encoding: { kind: 'int4', scaleDtype: scaleDtype(scales), groupSize },
    data,
    scales,
    ...(shape && { declaredShape: shape }),
    place: { tensor: base, element: 0 },
  };
}

const SCALE_DTYPES: readonly string[] = ['F32', 'F16', 'BF16', 'F8_E8M0'] satisfies ScaleDtype[];

function scaleDtype({ name, file, dtype }: TensorInfo): ScaleDtype {
  if (!SCALE_DTYPES.includes(dtype)) throw new UnsupportedQuantisationError(name, file, `its scales are ${dtype}`);
  return dtype as ScaleDtype;
}
