import type { CalibrationPlan } from '../calibration/pass-plan.js';
import { formatBytes } from '../format.js';

/** The plan of a record as text. */
export function describeRecordPlan(plan: CalibrationPlan): string {
  const {
    sequences,
    length,
    tokens,
    tokensPerExpert,
    tokensOfWidth,
    layers,
    recordBytes,
    workBytes,
    batchTokens,
    memoryBytes,
  } = plan;
  return [
    `${tokens} tokens, in ${sequences === 1 ? '1 sequence' : `${sequences} sequences`} of ${length}: ${Math.round(tokensPerExpert)} for each expert on average, ${tokensOfWidth.toPrecision(2)} times the width`,
    `disk: ${formatBytes(recordBytes)} for the record of ${layers} layers, ${formatBytes(workBytes)} more while it is made`,
    `memory: at most ${formatBytes(memoryBytes)} while the model runs; ${batchTokens} tokens go through a layer at once`,
    ...plan.notes,
  ].join('\n');
}
