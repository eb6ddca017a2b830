/** Errors in calibration records. */
import { InputError } from './base.js';

/** A calibration record cannot be used. */
export abstract class RecordError extends InputError {}

/** The folder has no complete record. */
export class NotARecordError extends RecordError {
  constructor(
    readonly folder: string,
    reason: string,
  ) {
    super(`${folder} is not a calibration record: ${reason}. Make one with "mobe calibrate".`);
  }
}

/** A file of the record is missing, damaged, or does not fit the others. */
export class DamagedRecordError extends RecordError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: ${reason}. Make the record again, with "mobe calibrate --force", or copy it again.`);
  }
}

/** The record was made from another model. */
export class OtherRecordError extends RecordError {
  constructor(readonly folder: string) {
    super(
      `${folder} was recorded from another model: the fingerprints differ. Record this one, with "mobe calibrate <model> <another folder>".`,
    );
  }
}

/** A layer is asked for that has no experts, or is not in the record. */
export class RecordLayerError extends RecordError {
  constructor(
    readonly folder: string,
    readonly layer: number,
    readonly layers: readonly number[],
  ) {
    super(`${folder} has no record of layer ${layer}, only of ${layers.join(', ')}. Choose among these with --layers.`);
  }
}
