/** Errors of a farm: its queue, its workers and its groups. Addresses in messages have no passwords. */
import { InputError, RunError } from './base.js';

/** The packages that speak with Redis are not installed. */
export class QueueLibraryMissingError extends InputError {
  constructor(reason: string) {
    super(`A farm needs the packages "bullmq" and "ioredis" (${reason}): run "npm install bullmq ioredis".`);
  }
}

/** The address of the queue cannot be understood. */
export class QueueAddressError extends InputError {
  constructor(reason: string) {
    super(
      `--queue: ${reason}. Give redis://host:port or rediss://host:port, with user:password@ before the host if Redis asks for one; or put it into a file (--queue-file) or the environment variable MOBE_QUEUE.`,
    );
  }
}

/** No Redis answers at the address. */
export class QueueUnreachableError extends InputError {
  constructor(
    readonly queue: string,
    reason: string,
  ) {
    super(`The queue ${queue} cannot be reached: ${reason}. Is Redis running there, and is the address right?`);
  }
}

/** Redis asks for a password, or for another one, or forbids a command. */
export class QueueRefusedError extends InputError {
  constructor(
    readonly queue: string,
    reason: string,
  ) {
    super(
      `The queue ${queue} refuses this user: ${reason}. Put user and password into its address: redis://user:password@host:port.`,
    );
  }
}

/** The server is too old. */
export class QueueVersionError extends InputError {
  constructor(
    readonly queue: string,
    version: string,
    least: string,
  ) {
    super(
      `The queue ${queue} is Redis ${version}, and a farm needs ${least} or newer, or Valkey. Update it, or name another one.`,
    );
  }
}

/** An address that would carry a password into the queue. */
export class SecretInJobError extends InputError {
  constructor(readonly location: string) {
    super(
      `The address of ${location} holds a password or a query, and jobs must not: everyone who reads the queue would see it. Give workers what they need in their own environment (HF_TOKEN, AWS_…, --token-file), and name the address alone.`,
    );
  }
}

/** A worker does not see the folder that factors are written to. */
export class FolderNotSharedError extends InputError {
  constructor(readonly folder: string) {
    super(
      `${folder} is not there on this machine. Factors must go to a folder that all machines see under the same name: mount it here, or submit with another --factors.`,
    );
  }
}

/** A worker finds something else at the model's address than what was submitted, or plans its fits otherwise. */
export class UnlikeRunError extends InputError {
  constructor(what: string) {
    super(
      `This machine would not fit what was submitted: ${what}. Update mobe here, or correct the address, then start the worker again.`,
    );
  }
}

/** The process that fitted a group ended. */
export class FitProcessError extends RunError {
  constructor(
    readonly group: string,
    reason: string,
  ) {
    super(`The process that fitted ${group} ${reason}. Perhaps memory was short: see the system log of that machine.`);
  }
}

/** Groups that failed on all tries. The others are finished. */
export class FarmFailedError extends RunError {
  constructor(readonly failed: ReadonlyArray<{ readonly group: string; readonly reason: string }>) {
    super(
      `${failed.length} of the groups failed on every try, and the others are finished:\n${failed
        .slice(0, 20)
        .map(({ group, reason }) => `  - ${group}: ${reason}`)
        .join('\n')}\nMend the cause, then submit again: these groups are tried anew.`,
    );
  }
}
