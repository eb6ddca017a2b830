/**
 * "pack-quantized" of compressed-tensors (Kimi-K2-Thinking): `x.weight_packed`, `x.weight_scale`, `x.weight_shape`. Asymmetric
 * matrices also have `x.weight_zero_point`, and matrices in activation order have `x.weight_g_idx`.
 */
import { wordsOf } from '../encodings/bit-fields.js';
import type { TensorInfo } from '../header.js';
import type { Checkpoint } from '../open-checkpoint.js';
import type { StoredMatrix } from '../stored-matrix.js';
import { positive, weightSchemes } from './config.js';
import { checkPart, misshapen, partOf, scaleDtypeOf, unsupported } from './parts.js';
import { scaledMatrix } from './scaled.js';

/** The bits if the config does not have them. */
const DEFAULT_BITS = 4;

export function packedMatrix(data: TensorInfo, checkpoint: Checkpoint): StoredMatrix {
  const base = data.name.slice(0, -'_packed'.length);
  if (checkpoint.tensors.has(base)) throw unsupported(data, `"${base}" is there beside it`);
  if (checkpoint.tensors.has(base.replace(/weight$/, 'meta')))
    throw unsupported(data, 'it is sparse (marlin-24 of compressed-tensors)');
  const part = (suffix: string): TensorInfo | undefined => checkpoint.tensors.get(`${base}_${suffix}`);
  if (data.dtype === 'U8') return packedFloats(data, checkpoint);
  if (data.dtype !== 'I32') throw unsupported(data, `it is packed in ${data.dtype}, not in I32`);
  const scales = partOf(data, [`${base}_scale`], checkpoint);
  const { bits, cols, groupSize } = packing(data, scales, checkpoint);
  const [rows] = data.shape as [number, number];
  const [indices, shape] = [part('g_idx'), part('shape')];
  const zeros = isAsymmetric(checkpoint) ? partOf(data, [`${base}_zero_point`], checkpoint) : part('zero_point');
  const groups = Math.ceil(cols / groupSize);
  if (zeros) checkPart(data, zeros, 'I32', [wordsOf(rows, bits), groups]);
  if (indices) checkPart(data, indices, 'I32', [cols]);
  if (shape && (String(shape.shape) !== '2' || !/^I(32|64)$/.test(shape.dtype)))
    throw misshapen(data, `${shape.name} is ${shape.dtype} [${shape.shape}], not two integers`);
  const besides = [zeros, indices].filter((it) => it !== undefined);
  return {
    name: base,
    rows,
    cols,
    encoding: {
      kind: 'packed',
      bits,
      scaleDtype: scaleDtypeOf(scales),
      groupSize,
      zeroRows: zeros ? wordsOf(rows, bits) : 0,
      reordered: indices !== undefined,
    },
    data,
    scales,
    ...(besides.length > 0 && { besides }),
    ...(shape && { declaredShape: shape }),
    place: { tensor: base, element: 0 },
  };
}

/** Whether the config has integer schemes and all of them are asymmetric. */
function isAsymmetric({ config }: Checkpoint): boolean {
  const integers = weightSchemes(config).filter(({ type = 'int' }) => type === 'int');
  return integers.length > 0 && integers.every(({ symmetric }) => symmetric === false);
}

/** FP4 has two codes in each byte. Other packed floats are refused, because their layout is not known. */
function packedFloats(data: TensorInfo, checkpoint: Checkpoint): StoredMatrix {
  const scheme = weightSchemes(checkpoint.config).find(({ type, num_bits: bits }) => type === 'float' && bits !== 4);
  const other = weightSchemes(checkpoint.config).some(({ type, num_bits: bits }) => type === 'float' && bits === 4);
  if (scheme && !other) throw unsupported(data, `the config says float of ${String(scheme.num_bits)} bits, packed`);
  return scaledMatrix(data, checkpoint);
}

interface Packing {
  readonly bits: number;
  readonly cols: number;
  readonly groupSize: number;
}

/** The configured scheme that fits the shapes. Throws if none fits or several do. */
function packing(data: TensorInfo, scales: TensorInfo, { config }: Checkpoint): Packing {
  const [rows, words] = data.shape as [number, number];
  const [scaleRows, scaleCols = 0] = scales.shape;
  const schemes = weightSchemes(config);
  const integers = schemes.filter(({ type = 'int' }) => type === 'int');
  if (schemes.length && !integers.length)
    throw unsupported(
      data,
      `it is I32, the config says ${String(schemes[0]?.type)} of ${String(schemes[0]?.num_bits)} bits`,
    );
  const wanted = (integers.length ? integers : [{}]).map(({ num_bits: bits = DEFAULT_BITS, group_size: size }) => ({
    bits: Number(bits),
    size: positive(size),
  }));
  const fitting = wanted.flatMap(({ bits, size }): Packing[] => {
    if (!Number.isInteger(bits) || bits < 1 || bits > 8) return [];
    // If rows do not fill their last word, weight_shape has their length. It is compared when the data is read.
    const full = Math.floor((words * 32) / bits);
    const cols = (words * 32) % bits === 0 || !size ? full : Math.min(full, scaleCols * size);
    const groupSize = size ?? Math.ceil(cols / (scaleCols || 1));
    const fits =
      scales.shape.length === 2 &&
      scaleRows === rows &&
      Math.ceil(cols / groupSize) === scaleCols &&
      wordsOf(cols, bits) === words;
    return fits ? [{ bits, cols, groupSize }] : [];
  });
  const distinct = [...new Map(fitting.map((it) => [`${it.bits} ${it.groupSize}`, it])).values()];
  if (distinct.length > 1)
    throw unsupported(
      data,
      `the config has several schemes that its shape fits: ${distinct.map(({ bits, groupSize }) => `INT${bits} in groups of ${groupSize}`).join(', ')}`,
    );
  const [found] = distinct;
  if (found) return found;
  const bits = wanted[0]?.bits ?? DEFAULT_BITS;
  const values = Math.floor((words * 32) / bits);
  throw misshapen(data, `it holds [${rows},${values}] values of ${bits} bits; ${scales.name} has [${scales.shape}]`);
}
