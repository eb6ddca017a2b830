/** Fits the factors of single experts and encodes them as they are stored. */
import { isQuantisedDtype } from '../../src/checkpoint/factor-dtype.js';
import { encodeFactors, type StoredFactor } from '../../src/methods/factor-storage.js';
import type { ExpertFactors, Factors, Method } from '../../src/methods/method.js';

/** The factors of a group's experts. */
export interface ExpertForm {
  readonly method: Method;
  readonly factors: readonly StoredFactor[];
}

/** Whether the factor that is solved for is rounded with error feedback, which needs the Gram matrix of its solution. */
export const needsGram = ({ method, factors }: ExpertForm): boolean =>
  factors.some(({ name, dtype }) => name === method.scaled && isQuantisedDtype(dtype));

/** Multiplies σ into the factor that the method names. Changes `factors` in place, and returns them. */
export function foldSigma(method: Pick<Method, 'scaled'>, factors: Factors, sigma: number): Factors {
  const values = factors[method.scaled] as Float32Array;
  for (let i = 0; i < values.length; i++) values[i] = (values[i] as number) * sigma;
  return factors;
}

/**
 * Fits the factors of an expert, multiplies σ into them and encodes them. A quantised factor is rounded after that, in the metric that
 * it was solved in, which σ does not change. Throws an `OverflowError`, which names `label`.
 * @param own made with `gram: needsGram(form)`
 */
export async function encodeExpert(
  form: ExpertForm,
  own: ExpertFactors,
  { expert, target, sigma, label }: { expert: number; target: Float32Array; sigma: number; label: string },
): Promise<Record<string, Uint8Array<ArrayBuffer>>> {
  const { method, factors } = form;
  if (!needsGram(form) || !own.fitWithGram)
    return encodeFactors(factors, foldSigma(method, await own.fit(expert, target), sigma), () => label);
  const { factors: fitted, gram } = await own.fitWithGram(expert, target);
  return encodeFactors(factors, foldSigma(method, fitted, sigma), () => label, { [method.scaled]: gram });
}
