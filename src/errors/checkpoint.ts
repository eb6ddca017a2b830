/** Errors in a checkpoint folder. */
import { InputError } from './base.js';

/** Nothing opens locations of that scheme. */
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

export class PipeSourceError extends InputError {
  constructor() {
    super(
      '"-" cannot be read as a checkpoint: one is read at many places, and a pipe only from its start to its end. Write it to a folder first, with "mobe receive <folder> -".',
    );
  }
}

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
    super(`${file}: ${reason}. The file is damaged: download it again.`);
  }
}

export class MissingShardError extends InputError {
  constructor(
    readonly file: string,
    readonly tensors: number,
  ) {
    super(`${file} is missing; the index places ${tensors} tensor(s) in it. Download that shard.`);
  }
}

export class ExtraShardError extends InputError {
  constructor(readonly file: string) {
    super(`${file} is not named by the index. It belongs to another download: remove it, or fetch the matching index.`);
  }
}

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

export class UnsafePathError extends InputError {
  constructor(
    readonly file: string,
    readonly path: string,
  ) {
    super(`${file} names the file ${JSON.stringify(path)}, which is not a plain name. Refusing to leave the folder.`);
  }
}
