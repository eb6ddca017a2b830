/** A safetensors file is not one. */
import { InputError } from './base.js';

export class InvalidHeaderError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(
      `${file}: not a safetensors file: ${reason}. Put the file that the model was published with in its place, or save the model again.`,
    );
  }
}

export class HeaderTooLongError extends InputError {
  constructor(
    readonly file: string,
    readonly length: bigint,
    readonly limit: number,
    what: string,
  ) {
    super(
      `${file}: the header claims ${length} bytes, ${what} ${limit}. The file is no safetensors file, or was not downloaded to its end: compare its size with the published one.`,
    );
  }
}

export class DuplicateKeyError extends InputError {
  constructor(
    readonly file: string,
    readonly key: string,
  ) {
    super(
      `${file}: the key ${JSON.stringify(key)} appears twice. Which one is meant cannot be known, and loaders disagree: save the file again with one of them.`,
    );
  }
}

export class TruncatedShardError extends InputError {
  constructor(
    readonly file: string,
    readonly tensor: string,
    readonly expected: number,
    readonly actual: number,
  ) {
    super(
      `${file} is truncated: tensor "${tensor}" ends at byte ${expected}, the file at ${actual}. Download it again.`,
    );
  }
}

export class OffsetError extends InputError {
  constructor(
    readonly file: string,
    readonly tensor: string,
    reason: string,
  ) {
    super(
      `${file}: tensor "${tensor}": ${reason}. The file is damaged, or was written wrongly: compare it with the published one.`,
    );
  }
}

export class SizeMismatchError extends InputError {
  constructor(
    readonly file: string,
    readonly tensor: string,
    readonly expected: number,
    readonly actual: number,
  ) {
    super(
      `${file}: tensor "${tensor}" has ${actual} bytes, its dtype and shape need ${expected}. The file is damaged, or was written wrongly: compare it with the published one.`,
    );
  }
}

export class UnsupportedDtypeError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    readonly dtype: string,
  ) {
    super(
      `Tensor "${tensor}" in ${file} is ${dtype}; weights are decoded from F32, F16, BF16, FP8 with scales, and INT4 of compressed-tensors. Convert the checkpoint to bf16 first.`,
    );
  }
}

export class UnsupportedQuantisationError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    what: string,
  ) {
    super(
      `Tensor "${tensor}" in ${file} is quantised in a way mobe does not decode: ${what}. FP8 with scales of blocks, rows or the whole tensor and symmetric INT4 of compressed-tensors are decoded; convert the checkpoint to bf16 first.`,
    );
  }
}

export class MissingScaleError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    readonly scales: string,
  ) {
    super(
      `Tensor "${tensor}" in ${file} is quantised, but its scales "${scales}" are in no shard: without them its values mean nothing. Download the shard that has them.`,
    );
  }
}

export class QuantisedShapeError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    what: string,
  ) {
    super(`Quantised tensor "${tensor}" in ${file}: ${what}. Download the checkpoint again.`);
  }
}
