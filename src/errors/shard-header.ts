/** Errors in a safetensors file. */
import { InputError } from './base.js';

/** The header is not JSON, or its entries do not have the right form. */
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

/** The length field is larger than the file or the limit. */
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

/** A key occurs twice, in a header or in an index. */
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

/** The file ends before the data of a tensor. */
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

/** The data of a tensor overlaps another, leaves a hole, or ends before it begins. */
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

/** A tensor's bytes do not fit its dtype and shape. */
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

/** An expert's weight has a dtype that cannot be decoded. */
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

/** A weight is quantised in a way that cannot be decoded. */
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

/** No shard has the scales of a quantised tensor. */
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

/** The parts of a quantised tensor do not fit each other. */
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
