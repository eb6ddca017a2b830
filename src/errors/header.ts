/** A safetensors file is not one. */
import { InputError } from './base.js';

export class InvalidHeaderError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: not a safetensors file: ${reason}. Download it again.`);
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
      `${file}: the header claims ${length} bytes, ${what} ${limit}. The file is damaged or truncated: download it again.`,
    );
  }
}

export class DuplicateKeyError extends InputError {
  constructor(
    readonly file: string,
    readonly key: string,
  ) {
    super(
      `${file}: the key ${JSON.stringify(key)} appears twice. Which one is meant cannot be known: download the file again.`,
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
    super(`${file}: tensor "${tensor}": ${reason}. The file is damaged: download it again.`);
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
      `${file}: tensor "${tensor}" has ${actual} bytes, its dtype and shape need ${expected}. The file is damaged.`,
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
      `Tensor "${tensor}" in ${file} is ${dtype}; weights are decoded from F32, F16, BF16 and the quantisations of docs/families.md. Convert the checkpoint to bf16 first.`,
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
      `Tensor "${tensor}" in ${file} is quantised in a way mobe does not decode: ${what}. FP8, MXFP4, MXFP8, NVFP4, GPTQ, AWQ and the integers of compressed-tensors are decoded; convert the checkpoint to bf16 first.`,
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
      `Tensor "${tensor}" in ${file} is quantised, but "${scales}" is in no shard: without it its values mean nothing. Take a copy of the checkpoint whose index lists it.`,
    );
  }
}

export class QuantisedShapeError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    what: string,
  ) {
    super(
      `Quantised tensor "${tensor}" in ${file}: ${what}. Its parts, or config.json, are of another conversion: take all files from one.`,
    );
  }
}
