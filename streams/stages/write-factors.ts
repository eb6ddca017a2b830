/** Sink of `fit` and `import`. */
import { factorTensorName, factorUnit } from '../../src/conversion/factor-files.js';
import type { FittedGroupReport } from '../../src/conversion/run-report.js';
import type { Output } from '../../src/output/output.js';
import type { Factorization } from '../records.js';
import { foldExperts } from './fold.js';

/** Writes a group's factors, for which room is reserved (`factorLayout`), σ folded into A; its report ends its unit. */
export async function writeFactors(
  output: Pick<Output, 'write' | 'finish'>,
  factorization: Factorization,
): Promise<FittedGroupReport> {
  const { group, bases, coefficients } = factorization;
  await output.write(factorTensorName(group, 'B'), 0, bases);
  await output.write(factorTensorName(group, 'alpha'), 0, coefficients);
  const A = factorTensorName(group, 'A');
  const report = await foldExperts(factorization, (expert, data) => output.write(A, expert * data.byteLength, data));
  await output.finish?.(factorUnit(group), report);
  return report;
}
