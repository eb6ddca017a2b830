import { isFloatDtype } from '../../src/checkpoint/dtype.js';
import { attachedTo, isQuantised, quantisedMatrix } from '../../src/checkpoint/quantisation.js';
import { plainMatrix, type StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { quantisedFactors } from '../../src/conversion/native-groups.js';
import { InterruptedError } from '../../src/errors.js';
import { expertsOf } from '../../src/models/expert-names.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { RunHooks } from '../run-options.js';
import { countNonFinite, decodedRows } from '../stages/decode-source.js';

/** A tensor with NaN or infinite weights. */
export interface BadTensor {
  readonly tensor: string;
  readonly file: string;
  /** Number of weights that are NaN or infinite. */
  readonly nonFinite: number;
}

/** The result of `checkWeights`. */
export interface WeightCheck {
  /** Number of weight tensors that were decoded: plain floats and quantised ones. */
  readonly tensors: number;
  /** Number of weights in them. */
  readonly weights: number;
  readonly bad: readonly BadTensor[];
}

/**
 * Reads and decodes every weight of a checkpoint once, in bounded memory, and lists the tensors with NaN or infinite weights.
 * Throws an `InputError` if the checkpoint is damaged.
 */
export async function checkWeights(
  model: Source,
  { onProgress, signal, peers }: Pick<RunHooks, 'onProgress' | 'signal' | 'peers'> = {},
): Promise<WeightCheck> {
  const source = await openSource(model, { peers });
  const factors = quantisedFactors(source);
  const matrices = [...source.tensors.values()].flatMap((tensor): readonly StoredMatrix[] => {
    const factor = factors.get(tensor.name);
    if (factor) return factor;
    if (attachedTo(tensor, source)) return []; // scales are read with the data they belong to
    if (isQuantised(tensor)) {
      const experts = expertsOf(tensor, source); // a fused tensor has several matrices
      return experts.length > 0 ? experts.map(({ matrix }) => matrix) : [quantisedMatrix(tensor, source)];
    }
    return isFloatDtype(tensor.dtype) ? [plainMatrix(tensor)] : [];
  });
  // In this order, a file from a hub is checked against its hash too.
  matrices.sort(({ data: a }, { data: b }) => (a.file === b.file ? a.start - b.start : a.file < b.file ? -1 : 1));
  const total = matrices.reduce((sum, { data }) => sum + data.end - data.start, 0);
  onProgress?.({ kind: 'phase', phase: 'check', groups: 0, bytes: total });
  const bad: BadTensor[] = [];
  let weights = 0;
  let bytes = 0;
  try {
    for (const matrix of matrices) {
      let nonFinite = 0;
      for await (const { values } of decodedRows(matrix, source.files)) {
        if (signal?.aborted) throw new InterruptedError();
        weights += values.length;
        nonFinite += countNonFinite(values);
      }
      const { data, name } = matrix;
      if (nonFinite) bad.push({ tensor: name, file: data.file, nonFinite });
      bytes += data.end - data.start;
      onProgress?.({ kind: 'bytes', bytes });
    }
  } finally {
    await source.files.close();
  }
  return { tensors: matrices.length, weights, bad };
}
