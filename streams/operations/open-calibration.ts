/** The calibration record of a run: one in a folder, or one that is made while it is used. */
import { openRecord } from '../../src/calibration/open-record.js';
import type { CalibrationRecord } from '../../src/calibration/record.js';
import { type Checkpoint, fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import type { GroupKey } from '../../src/conversion/group-plan.js';
import { OtherRecordError } from '../../src/errors.js';
import type { RunOptions } from '../run-options.js';

/** Opens the record in `folder`, or takes the run's own, which stays open. Throws as `openRecord`. */
export async function openCalibration(
  folder: string,
  source: Checkpoint,
  { record }: Pick<RunOptions, 'record'>,
): Promise<CalibrationRecord> {
  const sourceFingerprint = await fingerprint(source);
  if (!record) return openRecord(folder, { sourceFingerprint });
  if (record.facts.sourceFingerprint !== sourceFingerprint) throw new OtherRecordError(folder);
  return { ...holding(record), release: (number) => record.release(number) };
}

/** A record for one part of the work: its layers are released, and it is closed, after other parts. */
export const holding = (record: CalibrationRecord): CalibrationRecord => ({
  name: record.name,
  facts: record.facts,
  layer: (number) => record.layer(number),
  release: async () => {},
  tokens: () => record.tokens(),
  close: async () => {},
});

/** Releases a layer when all its groups are finished, so that an interrupted run does not need it again. */
export class LayerRelease {
  private readonly left = new Map<number, number>();

  constructor(private readonly record: CalibrationRecord | undefined) {}

  /** Tells all groups that will be finished. */
  expect(groups: ReadonlyArray<Pick<GroupKey, 'layer'>>): void {
    for (const { layer } of groups) this.left.set(layer, (this.left.get(layer) ?? 0) + 1);
  }

  async finish({ layer }: Pick<GroupKey, 'layer'>): Promise<void> {
    const left = (this.left.get(layer) as number) - 1;
    this.left.set(layer, left);
    if (left === 0) await this.record?.release(layer);
  }
}
