/** A checkpoint folder is not what it should be. */
import { InputError } from './base.js';

export class NotACheckpointError extends InputError {
  constructor(
    readonly folder: string,
    reason: string,
  ) {
    super(`${folder} is not a checkpoint: ${reason}. Give the folder that holds config.json and *.safetensors.`);
  }
}

export class InvalidJsonError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: ${reason}. Correct it, or put the file that the model was published with in its place.`);
  }
}

/** git left it in the place of a file, where git-lfs was not there to fetch that. */
export class LfsPointerError extends InputError {
  constructor(readonly file: string) {
    super(
      `${file} is a git-lfs pointer, a few lines of text in the place of the file. Run "git lfs install" and "git lfs pull" in its folder; they fetch all files that are pointers.`,
    );
  }
}

/** A file that loading needs is there by name only. */
export class UnreadableFileError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file} cannot be read: ${reason}. The model does not load without it: run its download again to its end.`);
  }
}

export class MissingShardError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file} is missing: ${reason}. Download that file; the others can stay.`);
  }
}

/** Without an index nothing says which of two counts. */
export class AmbiguousTensorError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    readonly other: string,
  ) {
    super(
      `${file} and ${other} both hold tensor "${tensor}", and there is no model.safetensors.index.json to say which counts. Add the index that the model was published with, or give a folder with one of the two.`,
    );
  }
}

export class SeveralModelsError extends InputError {
  constructor(
    readonly folder: string,
    readonly sets: readonly string[],
  ) {
    super(
      `${folder} holds several sets of weights (${sets.join(', ')}), and no model.safetensors.index.json to say which is the model. Add the index that it was published with, or give a folder with one of them.`,
    );
  }
}

export class UnsafePathError extends InputError {
  constructor(
    readonly file: string,
    readonly path: string,
  ) {
    super(`${file} names the file ${JSON.stringify(path)}, which is not a plain name. Refusing to leave the folder.`);
  }
}
