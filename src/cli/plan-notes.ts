import type { TimedPlan } from '../conversion/estimate.js';
import { formatPercent } from '../format.js';

/** The notes on a plan: those on the source, and one if the output has more bytes. */
export const planNotes = (planned: TimedPlan): string[] => [
  ...planned.source.notes,
  ...planned.model.notes,
  ...growthNote(planned),
];

function growthNote({ bytesBefore, bytesAfter, quantised, settings }: TimedPlan): string[] {
  if (bytesAfter <= bytesBefore) return [];
  const { format, keepQuantized, dtype } = settings;
  const because = quantised.before > quantised.after ? 'because quantised weights are decoded' : `in ${dtype}`;
  const remedy =
    quantised.before > quantised.after && format === 'hf' && !keepQuantized
      ? ' --keep-quantized leaves all but the experts of converted layers as they are.'
      : '';
  return [
    `the output has ${formatPercent(bytesAfter / bytesBefore)} of the source's tensor bytes, ${because}: it is larger.${remedy}`,
  ];
}
