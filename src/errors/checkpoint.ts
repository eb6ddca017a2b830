/** Errors in a checkpoint folder. */
import { InputError } from './base.js';

/** The location's scheme is unknown, or cannot be written to. */
export class UnknownSchemeError extends InputError {
  /**
   * @param location without secrets
   * @param known schemes that can be opened there, besides folders
   * @param use what the location is for
   */
  constructor(
    readonly location: string,
    readonly known: readonly string[],
    use: 'read' | 'write' = 'read',
  ) {
    const places = ['a folder of this machine', ...known.map((it) => (/^\w/.test(it) ? `${it}://…` : `"${it}"`))];
    super(
      use === 'read'
        ? `${location} cannot be opened: its scheme is unknown here. Known are ${places.join(', ')}.`
        : `${location} cannot be written to. What can is ${places.join(', ')}.`,
    );
  }
}

/** A pipe was given as a source that is read at many places. */
export class PipeSourceError extends InputError {
  constructor() {
    super(
      '"-" cannot be read as a checkpoint: one is read at many places, and a pipe only from its start to its end. Write it to a folder first, with "mobe receive <folder> -".',
    );
  }
}

/** The folder is missing, or lacks files of a checkpoint or of factors. */
export class NotACheckpointError extends InputError {
  constructor(
    readonly folder: string,
    readonly reason: string,
    hint?: string,
  ) {
    super(
      `${folder} is not a checkpoint: ${reason}. Give the folder that holds config.json and *.safetensors.${hint === undefined ? '' : ` ${hint}`}`,
    );
  }
}

/** A JSON file cannot be parsed, is too large or too deep, or lacks a required entry. */
export class InvalidJsonError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: ${reason}. Correct it, or put the file that the model was published with in its place.`);
  }
}

/** The file is a git-lfs pointer. git puts pointers in the place of files if it runs without git-lfs. */
export class LfsPointerError extends InputError {
  constructor(readonly file: string) {
    super(
      `${file} is a git-lfs pointer, a few lines of text in the place of the file. Run "git lfs install" and "git lfs pull" in its folder; they fetch all files that are pointers.`,
    );
  }
}

/** A file that loading needs is listed but cannot be read, for example because it is a link without a target. */
export class UnreadableFileError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file} cannot be read: ${reason}. The model does not load without it: run its download again to its end.`);
  }
}

/** The index names a shard that is not in the folder. */
export class MissingShardError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file} is missing: ${reason}. Download that file; the others can stay.`);
  }
}

/** Two shards hold a tensor of the same name, and no index says which one counts. */
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

/** The folder holds several sets of weights, and no index says which is the model. */
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

/** A name from an index, a manifest, a record or a peer leads out of its folder. */
export class UnsafePathError extends InputError {
  constructor(
    readonly file: string,
    readonly path: string,
  ) {
    super(`${file} names the file ${JSON.stringify(path)}, which is not a plain name. Refusing to leave the folder.`);
  }
}
