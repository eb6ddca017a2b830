/** Errors of sources that are read over HTTP: the Hugging Face hub, file servers, S3. No message has a secret. */
import { InputError, RunError } from './base.js';
import { PeerRefusalError } from './peer.js';

/** A location has a known scheme but cannot be understood. */
export class InvalidLocationError extends InputError {
  /** @param form how such a location looks */
  constructor(
    readonly location: string,
    reason: string,
    form: string,
  ) {
    super(`${location} cannot be understood: ${reason}. It looks like ${form}.`);
  }
}

/** Requests are forbidden by the environment, and the cache does not have what is needed. */
export class OfflineError extends PeerRefusalError {
  constructor(
    readonly location: string,
    missing: string,
    use: 'read' | 'write' = 'read',
  ) {
    super(
      use === 'write'
        ? `${location} cannot be written to: ${missing}. Unset it.`
        : `${location} cannot be read offline: ${missing}. Unset HF_HUB_OFFLINE to read from the hub, or download the model into the cache first ("hf download").`,
    );
  }
}

/** A server does not accept the credentials. */
export class BadCredentialsError extends PeerRefusalError {
  /** @param source where the credentials come from */
  constructor(
    readonly server: string,
    readonly source: string,
    remedy: string,
  ) {
    super(`${server} does not accept the credentials in ${source}. ${remedy}`);
  }
}

/** The publisher of a model gives access only on request. */
export class GatedModelError extends PeerRefusalError {
  constructor(
    readonly location: string,
    readonly page: string,
    tokenSource: string | undefined,
  ) {
    super(
      `${location} is gated: its publisher gives access on request. Ask for it at ${page}, ${
        tokenSource === undefined
          ? 'then give your token in HF_TOKEN or log in with "hf auth login"'
          : `with the account of the token in ${tokenSource}; a fine-grained token also needs the permission to read gated repositories`
      }.`,
    );
  }
}

/** The server refuses access, or says that it does not know the place without access. */
export class NoAccessError extends PeerRefusalError {
  constructor(
    readonly location: string,
    reason: string,
    remedy: string,
  ) {
    super(`${location} cannot be read: ${reason}. ${remedy}`);
  }
}

/** The address, the revision or a file does not exist. */
export class NotThereError extends PeerRefusalError {
  constructor(
    readonly location: string,
    reason: string,
    remedy: string,
  ) {
    super(`${location} is not there: ${reason}. ${remedy}`);
  }
}

/** A model has another name now. */
export class RenamedModelError extends PeerRefusalError {
  constructor(
    readonly location: string,
    readonly renamed: string,
  ) {
    super(`${location} has another name now: ${renamed}. Use that.`);
  }
}

/** A server sends whole files where a part was asked for. */
export class NoRangesError extends PeerRefusalError {
  constructor(
    readonly server: string,
    readonly file: string,
  ) {
    super(
      `${server} sends all of ${file} where a range of it was asked for (status 200, not 206), so this model cannot be read from there. Use a server that supports range requests, or download the model and name its folder.`,
    );
  }
}

/** The content of a file that was read whole is not what its server says. The work done with it cannot be used. */
export class DamagedDownloadError extends RunError {
  constructor(
    readonly file: string,
    readonly expected: string,
    readonly found: string,
  ) {
    super(
      `${file} arrived damaged: its hash is ${expected} by the hub, and ${found} of the bytes that came. Run the command again; if it happens again, a proxy or the storage host changes the bytes.`,
    );
  }
}

/** A redirect leads in a circle or to a connection without encryption. */
export class BadRedirectError extends PeerRefusalError {
  constructor(
    readonly server: string,
    reason: string,
  ) {
    super(`${server} cannot be read: ${reason}. Give the address at which the files are.`);
  }
}

/** A server failed again and again, cannot be reached, or answers wrongly. */
export class ServerFailedError extends RunError {
  constructor(
    readonly server: string,
    what: string,
    reason: string,
    tries: number,
    remedy = 'Check the address and the network, then run the command again.',
  ) {
    super(
      `Reading ${what} from ${server} failed${tries > 1 ? ` (${tries} times without progress)` : ''}: ${reason}. ${remedy}`,
    );
  }
}

/** A file cannot be sent: the server failed again and again, cannot be reached, or answers wrongly. */
export class UploadFailedError extends RunError {
  constructor(
    readonly server: string,
    what: string,
    reason: string,
    tries: number,
    remedy = 'Check the address and the network, then run the command again: it goes on where it stopped.',
  ) {
    super(
      `Sending ${what} to ${server} failed${tries > 1 ? ` (${tries} times without progress)` : ''}: ${reason}. ${remedy}`,
    );
  }
}

/** The credentials are missing, or do not allow to write. */
export class NoWriteAccessError extends PeerRefusalError {
  constructor(
    readonly location: string,
    reason: string,
    remedy: string,
  ) {
    super(`${location} cannot be written to: ${reason}. ${remedy}`);
  }
}

/** The account or the server has no room for the result. */
export class StorageFullError extends RunError {
  constructor(
    readonly location: string,
    reason: string,
  ) {
    super(
      `${location} has no room for this result: ${reason}. Make room or have the limit raised there, then run the command again: it goes on where it stopped.`,
    );
  }
}

/** Another result was put at the place while this run worked. */
export class UploadConflictError extends RunError {
  constructor(
    readonly location: string,
    reason: string,
  ) {
    super(
      `${location} changed while this run worked: ${reason}. Nothing of this run is to be seen there. Move the other files away, then run the command again: what was sent is not sent again.`,
    );
  }
}

/** A server limits the rate of requests, and the wait would be too long. */
export class RateLimitedError extends RunError {
  constructor(
    readonly server: string,
    reason: string,
    remedy: string,
  ) {
    super(`${server} limits the rate of requests (status 429): ${reason}. ${remedy}`);
  }
}
