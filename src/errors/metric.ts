/** Errors of metrics from calibration records. */
import { InputError } from './base.js';

/** The metric of an expert is not finite. */
export class NonFiniteMetricError extends InputError {
  constructor(
    readonly record: string,
    readonly group: string,
    readonly expert: number,
  ) {
    super(
      `${record}: the metric of ${group}, expert ${expert} is not finite. Inputs in the record or weights of the expert's layer are infinite or not numbers. Make the record again, and check the model with "mobe inspect".`,
    );
  }
}

/** A record's layer does not fit the model's experts. */
export class RecordShapeError extends InputError {
  constructor(
    readonly record: string,
    readonly layer: number,
    reason: string,
  ) {
    super(`${record}: layer ${layer} ${reason}. It is the record of another model. Make one with "mobe calibrate".`);
  }
}

/** The activation of a model's experts is not known to this program. */
export class UnknownActivationError extends InputError {
  constructor(
    readonly file: string,
    readonly activation: string,
  ) {
    super(
      `${file}: its activation "${activation}" is not known, so neurons cannot be weighed. Use --metric none --repair none.`,
    );
  }
}
