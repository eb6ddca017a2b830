import { describeGrowth } from '../conversion/check-size.js';
import type { TimedPlan } from '../conversion/estimate.js';

/** The notes on a plan: those on the source, and one if the output has more bytes. */
export const planNotes = (planned: TimedPlan): string[] => [
  ...planned.source.notes,
  ...planned.model.notes,
  ...growthNote(planned),
];

function growthNote(planned: TimedPlan): string[] {
  const growth = describeGrowth(planned);
  return growth ? [`${growth} mobe compress writes it only with --allow-larger.`] : [];
}
