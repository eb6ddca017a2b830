/**
 * GPTQ (also by gptqmodel and AutoRound) and AWQ: `x.qweight`, `x.qzeros`, `x.scales`, and for GPTQ `x.g_idx`. The shapes show
 * which of the two it is: GPTQ packs along the columns, AWQ along the rows.
 */

import type { StoredEncoding } from '../encoding.js';
import { wordsOf } from '../encodings/bit-fields.js';
import type { TensorInfo } from '../header.js';
import type { Checkpoint } from '../open-checkpoint.js';
import type { StoredMatrix } from '../stored-matrix.js';
import { positive, quantisationConfig, quantisationMethod } from './config.js';
import { checkPart, misshapen, partOf, scaleDtypeOf, unsupported } from './parts.js';

const AWQ_BITS = 4;
/** The bits of GPTQ if the config does not have them. */
const DEFAULT_BITS = 4;
const GPTQ_BITS = [2, 3, 4, 8] as const;

type Grouped = Extract<StoredEncoding, { kind: 'gptq' | 'awq' }>;

export function groupedMatrix(data: TensorInfo, checkpoint: Checkpoint): StoredMatrix {
  const base = data.name.slice(0, -'qweight'.length);
  const part = (suffix: string): TensorInfo => partOf(data, [`${base}${suffix}`], checkpoint);
  const scales = part('scales');
  const zeros = part('qzeros');
  const indices = checkpoint.tensors.get(`${base}g_idx`);
  if (data.dtype !== 'I32') throw unsupported(data, `it is ${quantisationMethod(checkpoint.config)} in ${data.dtype}`);
  const [height, width] = data.shape as [number, number];
  const [groups = 0, cols = 0] = scales.shape;
  if (scales.shape.length !== 2 || groups === 0 || cols === 0)
    throw misshapen(data, `${scales.name} has [${scales.shape}], not [groups, columns]`);
  const shared = { scaleDtype: scaleDtypeOf(scales), groups };
  let rows: number;
  let of: Grouped;
  if (width === wordsOf(cols, AWQ_BITS) && cols % 8 === 0 && width !== cols) {
    checkAwq(data, checkpoint);
    rows = height;
    of = { kind: 'awq', ...shared, groupSize: groupSize(data, rows, groups, checkpoint) };
    checkPart(data, zeros, 'I32', [groups, width]);
  } else if (width === cols) {
    const bits = gptqBits(data, indices, checkpoint);
    rows = indices?.shape[0] ?? Math.floor((height * 32) / bits);
    if (wordsOf(rows, bits) !== height)
      throw misshapen(data, `it is [${data.shape}], which does not hold ${rows} rows of ${bits} bits`);
    of = {
      kind: 'gptq',
      bits,
      ...shared,
      groupSize: groupSize(data, rows, groups, checkpoint),
      zerosLessOne: zerosLessOne(data, checkpoint),
      reordered: indices !== undefined,
    };
    checkPart(data, zeros, 'I32', [groups, wordsOf(cols, bits)]);
    if (indices) checkPart(data, indices, 'I32', [rows]);
  } else
    throw misshapen(data, `it is [${data.shape}], ${scales.name} [${scales.shape}]: neither GPTQ's nor AWQ's shapes`);
  const name = `${base}weight`;
  return {
    name,
    rows: cols,
    cols: rows,
    encoding: { kind: 'view', of, rows, cols, first: 0, step: 1, transposed: true },
    data,
    scales,
    besides: of.kind === 'gptq' && indices ? [zeros, indices] : [zeros],
    place: { tensor: name, element: 0 },
  };
}

function groupSize(data: TensorInfo, rows: number, groups: number, { config }: Checkpoint): number {
  const size = positive(quantisationConfig(config)?.group_size) ?? Math.ceil(rows / groups);
  // A configured size of −1 means one group. A configured size may also belong to other layers.
  for (const it of [size, Math.ceil(rows / groups)]) if (Math.ceil(rows / it) === groups) return it;
  throw misshapen(data, `its ${rows} rows do not make ${groups} groups`);
}

function gptqBits(
  data: TensorInfo,
  indices: TensorInfo | undefined,
  { config }: Checkpoint,
): (typeof GPTQ_BITS)[number] {
  const [height] = data.shape as [number];
  const configured = positive(quantisationConfig(config)?.bits) ?? DEFAULT_BITS;
  const rows = indices?.shape[0];
  // The tensors decide if they differ from the config: AutoRound gives some layers other bits.
  const bits = !rows || wordsOf(rows, configured) === height ? configured : (height * 32) / rows;
  const known = GPTQ_BITS.find((it) => it === bits);
  if (known === undefined) throw unsupported(data, `it is GPTQ of ${bits} bits; those of 2, 3, 4 and 8 are decoded`);
  return known;
}

/** Whether zero points are stored minus 1, by `checkpoint_format`, AutoRound's `packing_format` or `format`. */
function zerosLessOne(data: TensorInfo, { config }: Checkpoint): boolean {
  const entry = quantisationConfig(config);
  const format = String(entry?.checkpoint_format ?? entry?.packing_format ?? entry?.format ?? 'gptq').toLowerCase();
  if (/gptq_p|marlin|bitblas|qqq|planar/.test(format)) throw unsupported(data, `it is GPTQ of format "${format}"`);
  return !format.includes('v2');
}

function checkAwq(data: TensorInfo, { config }: Checkpoint): void {
  const entry = quantisationConfig(config);
  const version = String(entry?.version ?? entry?.checkpoint_format ?? entry?.format ?? 'gemm').toLowerCase();
  if (/gemv|marlin|llm-awq/.test(version)) throw unsupported(data, `it is AWQ of version "${version}"`);
}
