/** Errors in a checkpoint folder. */
import { InputError } from './base.js';

/** The location's scheme is unknown. */
export class UnknownSchemeError extends InputError {
  /** @param known schemes that can be opened there, besides folders */
  constructor(
    readonly location: string,
    readonly known: readonly string[],
  ) {
    const places = ['a folder of this machine', ...known.map((it) => (/^\w/.test(it) ? `${it}://…` : `"${it}"`))];
    super(`${location} cannot be opened: its scheme is unknown here. Known are ${places.join(', ')}.`);
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
    reason: string,
  ) {
    super(`${folder} is not a checkpoint: ${reason}. Give the folder that holds config.json and *.safetensors.`);
  }
}

/** A JSON file cannot be parsed, is too large or too deep, or lacks a required entry. */
export class InvalidJsonError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: ${reason}. The file is damaged: download it again.`);
  }
}

/** The index names a shard that is not in the folder. */
export class MissingShardError extends InputError {
  constructor(
    readonly file: string,
    readonly tensors: number,
  ) {
    super(`${file} is missing; the index places ${tensors} tensor(s) in it. Download that shard.`);
  }
}

/** The folder has a shard that the index does not name. */
export class ExtraShardError extends InputError {
  constructor(readonly file: string) {
    super(`${file} is not named by the index. It belongs to another download: remove it, or fetch the matching index.`);
  }
}

/** A shard lacks a tensor that the index places in it. */
export class TensorNotInShardError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
  ) {
    super(
      `The index places tensor "${tensor}" in ${file}, which does not hold it. Index and shards are of different downloads.`,
    );
  }
}

/** A shard holds a tensor that the index does not place in it. */
export class UnindexedTensorError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
  ) {
    super(
      `${file} holds tensor "${tensor}", which the index does not place there. Index and shards are of different downloads.`,
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
