/** Errors in files of torch.save. */
import { InputError } from './base.js';

/** The file is damaged, or not a state dict of torch.save. */
export class TorchFileError extends InputError {
  constructor(
    readonly file: string,
    readonly reason: string,
    readonly remedy = 'The file is damaged: copy or download it again.',
  ) {
    super(`${file}: ${reason}. ${remedy}`);
  }
}

/** A pickle contains something outside of the allow-list. Nothing was executed. */
export class PickleNotAllowedError extends InputError {
  constructor(
    readonly file: string,
    readonly what: string,
  ) {
    super(
      `${file}: ${what} is not allowed: only a state dict of plain tensors is read, and nothing in a pickle is executed. If you trust the file, load it with torch and save its state dict alone.`,
    );
  }
}

/** A tensor of the file is damaged or not contiguous. */
export class TorchTensorError extends InputError {
  constructor(
    readonly file: string,
    readonly tensor: string,
    readonly reason: string,
    readonly remedy = 'The file is damaged: copy or download it again.',
  ) {
    super(`${file}: tensor "${tensor}" ${reason}. ${remedy}`);
  }
}
