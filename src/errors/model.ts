/** Errors for models that are unknown or do not match their config. */
import { InputError } from './base.js';

/** No experts were found in a known layout. */
export class UnknownModelError extends InputError {
  constructor(
    readonly folder: string,
    seen: string,
  ) {
    super(`${folder} has no experts in a layout mobe knows. ${seen}`);
  }
}

/** The checkpoint is native, so its experts are factors already. */
export class NativeCheckpointError extends InputError {
  constructor(readonly folder: string) {
    super(
      `${folder} is a native MoBE checkpoint: its experts are factors already. Convert its source again, or expand it to standard weights ("mobe expand") and convert those.`,
    );
  }
}

/** Fused experts have a layout that is not supported. */
export class UnsupportedLayoutError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    what: string,
  ) {
    super(
      `Tensor "${tensor}" in ${file} holds experts in a layout mobe does not know: ${what}. Save the model with one tensor an expert.`,
    );
  }
}

/** A layer lacks one of its experts. */
export class MissingExpertError extends InputError {
  constructor(
    readonly tensor: string,
    readonly folder: string,
  ) {
    super(
      `${folder}: expert tensor "${tensor}" is missing while others of its layer are there. Look for the shard that has it; if there is none, the model was saved incomplete.`,
    );
  }
}

/** Config and shards disagree about whether a layer has routed experts. */
export class MissingLayerError extends InputError {
  constructor(
    readonly file: string,
    readonly layer: number,
  ) {
    super(
      `${file} gives layer ${layer} routed experts, but no shard has them. Look for the shard that has them, or for the config.json of these weights.`,
    );
  }
}

/** An expert's shape or encoding is wrong, or differs from the others of its layer. */
export class UnequalExpertError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    what: string,
  ) {
    super(
      `Expert tensor "${tensor}" in ${file} ${what}. The experts of a layer must be alike to be factorised together: save the model with experts of one shape.`,
    );
  }
}

/** A number in the config contradicts the tensors. */
export class ConfigMismatchError extends InputError {
  constructor(
    readonly file: string,
    readonly key: string,
    configured: unknown,
    found: unknown,
  ) {
    super(
      `${file} says "${key}": ${JSON.stringify(configured)}, the tensors say ${JSON.stringify(found)}. Config and weights are of different models.`,
    );
  }
}

/** The config of a native checkpoint does not describe its factors. */
export class NativeConfigError extends InputError {
  /** @param what completes a sentence that begins with the file's name */
  constructor(
    readonly file: string,
    what: string,
  ) {
    super(`${file} ${what}. Take config.json as the conversion wrote it, or convert the model again.`);
  }
}

/** The model can be compressed but not run: its architecture or a setting is not supported. */
export class UnsupportedModelError extends InputError {
  constructor(
    readonly file: string,
    what: string,
  ) {
    super(
      `${file}: ${what}, which mobe cannot compute. It runs Qwen3-MoE, DeepSeek-V2, DeepSeek-V3, Kimi-K2 and Ling; for others use transformers (for a calibration record: "mobe calibrate --script").`,
    );
  }
}

/** The experts compute otherwise than calibration supposes. */
export class UnsupportedExpertsError extends InputError {
  constructor(
    readonly file: string,
    what: string,
  ) {
    super(
      `${file}: ${what}, so calibration cannot tell what an error in their weights does. Use "--allocate error" and "--repair factors", which do not ask it.`,
    );
  }
}

/** An entry of the config is missing or has the wrong type. */
export class ConfigValueError extends InputError {
  constructor(
    readonly file: string,
    readonly key: string,
    expected: string,
    readonly value: unknown,
  ) {
    super(
      `${file}: "${key}" is ${value === undefined ? 'missing' : JSON.stringify(value)}, expected ${expected}. Put the config.json of these weights in its place.`,
    );
  }
}

/** The checkpoint lacks a tensor that the model needs. */
export class MissingTensorError extends InputError {
  constructor(
    readonly tensor: string,
    readonly folder: string,
  ) {
    super(
      `${folder} has no tensor "${tensor}", which its config.json asks for. Look for the shard that has it, or for the config.json of these weights.`,
    );
  }
}

/** A tensor's shape differs from the config's. */
export class WeightShapeError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    readonly found: readonly number[],
    readonly expected: readonly number[],
  ) {
    super(
      `Tensor "${tensor}" in ${file} has shape [${found}], the config asks for [${expected}]. Config and weights are of different models.`,
    );
  }
}

/** The tokenizer gives a token outside of the model's vocabulary. */
export class TokenRangeError extends InputError {
  constructor(
    readonly token: number,
    readonly vocabulary: number,
  ) {
    super(
      `The text has token ${token}, the model's vocabulary only ${vocabulary}. Tokenizer and weights are of different models.`,
    );
  }
}

/** Two models cannot be compared, for example because their vocabularies differ. */
export class UnlikeModelsError extends InputError {
  constructor(
    readonly model: string,
    readonly against: string,
    what: string,
  ) {
    super(`${model} cannot be compared with ${against}: ${what}. Give the model it was made from.`);
  }
}

/** tokenizer.json is missing or cannot be read. */
export class TokenizerError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(
      `${file}: ${reason}. The model's tokenizer is needed to read and write text: put the one it was published with in its place.`,
    );
  }
}

/** A weight to be factorised holds NaN or infinite values. */
export class NonFiniteWeightError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    readonly count: number,
  ) {
    super(
      `Tensor "${tensor}" in ${file} holds ${count} NaN or infinite value(s). Restore the file if it is damaged, or leave the layer out with --layers. "mobe inspect --check" finds all such tensors.`,
    );
  }
}

/** All weights of a group are equal. */
export class DegenerateGroupError extends InputError {
  constructor(
    readonly group: string,
    readonly value: number,
  ) {
    super(
      `All weights of ${group} are ${value}: there is nothing to factorise. Leave the layer out with --layers or the projection with --projections.`,
    );
  }
}
