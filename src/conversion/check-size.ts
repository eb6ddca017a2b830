/** Refuses a result that is larger than its source. */
import { isQuantisedName } from '../checkpoint/factor-dtype.js';
import { LargerOutputError } from '../errors.js';
import { formatBytes, formatPercent } from '../format.js';
import { limitsBytes } from './allocation-options.js';
import type { ConversionPlan } from './conversion-plan.js';
import { isNative, type Settings } from './settings.js';

/** The parts of a plan from which its size follows. */
export type SizedPlan = Pick<ConversionPlan, 'bytesBefore' | 'bytesAfter' | 'quantised' | 'format'> & {
  readonly settings: Partial<Pick<Settings, 'dtype' | 'keepQuantized' | 'averageBits' | 'keepBytes' | 'width'>>;
};

/** Throws `LargerOutputError` if the output has more tensor bytes than the source. */
export function checkSize(plan: SizedPlan): void {
  const growth = describeGrowth(plan);
  if (growth) throw new LargerOutputError(`${growth} Or give --allow-larger.`);
}

/** Says that the output is larger than its source, and which options make it smaller; undefined if it is not larger. */
export function describeGrowth({
  bytesBefore,
  bytesAfter,
  quantised,
  format,
  settings,
}: SizedPlan): string | undefined {
  if (bytesAfter <= bytesBefore) return undefined;
  const decoded = quantised.before > quantised.after;
  const remedies: string[] = [];
  const inBytes = limitsBytes(settings);
  if (isNative({ format }) && decoded && !isQuantisedName(settings.dtype) && !inBytes) remedies.push('--dtype int8');
  if (isQuantisedName(settings.dtype) && settings.dtype !== 'int4' && !inBytes) remedies.push('--dtype int4');
  if (settings.width === 8) remedies.push('--width 4');
  if (decoded && !settings.keepQuantized && settings.width === undefined) remedies.push('--keep-quantized');
  if (isNative({ format }))
    remedies.push(
      `a smaller --${settings.averageBits !== undefined ? 'average-bits' : inBytes ? 'keep-bytes' : 'keep'}`,
    );
  const because = decoded ? ', because quantised weights are decoded' : '';
  const give = remedies.length ? ` Give ${remedies.join(', or ')}.` : '';
  const remedy = settings.dtype === 'float32' ? `${give} Leave out --dtype float32.` : give;
  return `The output has ${formatBytes(bytesAfter)} of tensors, ${formatPercent(bytesAfter / bytesBefore)} of the source's ${formatBytes(bytesBefore)}${because}.${remedy}`;
}
