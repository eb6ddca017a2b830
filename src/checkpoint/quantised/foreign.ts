/** Recognises quantisations that are not decoded by their tensors, so that errors can name them. */
import type { TensorInfo } from '../header.js';
import type { Checkpoint } from '../open-checkpoint.js';
import { quantisationMethod } from './config.js';

/** Suffixes of data tensors, `x.<suffix>`, that only one quantisation uses. */
const DATA: Readonly<Record<string, string>> = {
  W_q: 'HQQ',
  codes: 'AQLM',
  q_weight: 'EXL2',
  trellis: 'EXL3',
  Qidxs: 'QuIP#',
  Qidxs_0: 'QuIP#',
  indices: 'VPTQ',
  dense_weights: 'SpQR',
  'weight._data': 'quanto',
  'weight:_data': 'torchao',
  _weight_qdata: 'torchao',
  compressed: 'sparse-24-bitmask or sparse-bitmask of compressed-tensors',
  B: 'Marlin or QQQ',
};

const DATA_NAME = new RegExp(
  `^(.+)\\.(${Object.keys(DATA)
    .map((it) => it.replace('.', '\\.'))
    .join('|')})$`,
);

/** Suffixes of tensors beside `x.weight` or `x.qweight` that show which quantisation it is. */
const BESIDE: ReadonlyArray<readonly [suffix: string, name: string]> = [
  ['weight.absmax', 'bitsandbytes'],
  ['weight.quant_map', 'bitsandbytes'],
  ['SCB', 'bitsandbytes'],
  ['qweight_type', 'GGUF'],
  ['weight_scales', 'EETQ'],
  ['tables', 'HIGGS'],
  ['forward_hadamard_matrix', 'FP-Quant'],
  ['biases', 'MLX'],
];

/** Values of `quant_method`, in lower case, for methods whose tensors look like those of another. */
const METHODS: Readonly<Record<string, string>> = {
  bitnet: 'BitNet',
  gguf: 'GGUF',
  eetq: 'EETQ',
  torchao: 'torchao',
  higgs: 'HIGGS',
  fp_quant: 'FP-Quant',
  bitsandbytes: 'bitsandbytes',
  paroquant: 'ParoQuant',
};

/** `x.weight` for the data tensor `x.codes` and the like; undefined for any other name. */
export const foreignMatrix = (name: string): string | undefined => {
  const base = DATA_NAME.exec(name)?.[1];
  return base && `${base}.weight`;
};

/** The name of this tensor's quantisation if it is one of those above; undefined otherwise. */
export function foreignQuantisation({ name, dtype }: TensorInfo, checkpoint: Checkpoint): string | undefined {
  const suffix = DATA_NAME.exec(name)?.[2];
  if (suffix) return DATA[suffix];
  const base = name.replace(/(?:weight|qweight|weight_packed)$/, '');
  const beside = BESIDE.find(([it]) => checkpoint.tensors.has(`${base}${it}`));
  if (beside) return beside[1];
  // FP8 with scales has the same meaning in every method.
  return dtype.startsWith('F8_') ? undefined : METHODS[quantisationMethod(checkpoint.config)];
}
