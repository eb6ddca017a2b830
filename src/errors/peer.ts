/** Errors between machines. */
import { InputError, RunError } from './base.js';

/** The token file or variable has no valid token. */
export class TokenError extends InputError {
  constructor(
    readonly source: string,
    reason: string,
  ) {
    super(`The token in ${source} cannot be used: ${reason}. Make one with "openssl rand -hex 32".`);
  }
}

/** A service would listen on a public address without a token. */
export class TokenRequiredError extends InputError {
  constructor(readonly host: string) {
    super(
      `Listening on ${host} would let others in without a token. Give one with --token-file or MOBE_TOKEN, or listen on 127.0.0.1.`,
    );
  }
}

/** The address cannot be listened on. */
export class ListenError extends InputError {
  constructor(
    readonly address: string,
    reason: string,
  ) {
    super(`Cannot listen on ${address}: ${reason}. Choose another host or port with --listen.`);
  }
}

/** A peer's address is not a valid WebSocket URL. */
export class PeerUrlError extends InputError {
  constructor(
    readonly url: string,
    reason: string,
  ) {
    super(`${url} is not the address of a peer: ${reason}. It looks like ws://host:port/ or wss://host:port/.`);
  }
}

/** The peer refuses a conversation with this program. The work itself is not at fault. */
export abstract class PeerRefusalError extends InputError {}

/** The token is missing or wrong. */
export class UnauthorisedError extends PeerRefusalError {
  constructor(readonly peer: string) {
    super(`${peer} does not accept the token. Give the same one on both sides, with --token-file or MOBE_TOKEN.`);
  }
}

/** The peer's TLS certificate is not trusted. */
export class CertificateError extends PeerRefusalError {
  constructor(
    readonly peer: string,
    reason: string,
  ) {
    super(`The certificate of ${peer} is not trusted: ${reason}. Name the one to trust with --ca.`);
  }
}

/** The peer speaks another version of the protocol. */
export class ProtocolVersionError extends PeerRefusalError {
  constructor(
    readonly peer: string,
    readonly theirs: number,
    readonly ours: number,
  ) {
    super(`${peer} speaks version ${theirs} of the protocol, this program version ${ours}. Use the same mobe on both.`);
  }
}

/** The peer offers another service than the requested one. */
export class WrongServiceError extends PeerRefusalError {
  constructor(
    readonly peer: string,
    readonly theirs: string,
    readonly ours: string,
  ) {
    super(`${peer} is for "${theirs}", not for "${ours}". Check the address.`);
  }
}

/** The receiver already writes another conversion into its folder. */
export class BusyError extends RunError {
  constructor(readonly folder: string) {
    super(`${folder} is being written by another conversion. Wait for it, or receive in another folder.`);
  }
}

/** Workers have different engines. */
export class UnlikeWorkersError extends InputError {
  constructor(
    readonly first: string,
    firstEngine: string,
    readonly other: string,
    otherEngine: string,
  ) {
    super(
      `${first} runs on ${firstEngine}, ${other} on ${otherEngine}: the result would depend on who fitted what. Start all workers with the same --engine.`,
    );
  }
}

/** A failure of the connection or of the peer. */
export abstract class PeerError extends RunError {
  abstract readonly peer: string;
}

/** No connection to the peer could be made in time. */
export class UnreachablePeerError extends PeerError {
  constructor(
    readonly peer: string,
    readonly seconds: number,
    reason: string,
  ) {
    super(
      `${peer} cannot be reached (tried for ${Math.round(seconds)} s): ${reason}. Is it running, and is the address right?`,
    );
  }
}

/** The connection broke and could not be made again, or the peer ended it early. */
export class PeerLostError extends PeerError {
  constructor(
    readonly peer: string,
    reason: string,
  ) {
    super(`The connection to ${peer} was lost: ${reason}. Check that machine, then run the command again.`);
  }
}

/** The peer is connected but sends nothing, not even heartbeats. */
export class PeerTimeoutError extends PeerError {
  constructor(
    readonly peer: string,
    readonly seconds: number,
  ) {
    super(`${peer} sent nothing for ${seconds} s. Check that machine, then run the command again.`);
  }
}

/** The peer is connected, but its work makes no progress. */
export class PeerStalledError extends PeerError {
  constructor(
    readonly peer: string,
    readonly seconds: number,
  ) {
    super(`${peer} is connected, but its work did not proceed for ${seconds} s. Restart it.`);
  }
}

/** The peer was stopped, or no longer knows the session. A new conversation may work. */
export class SessionLostError extends PeerError {
  constructor(readonly peer: string) {
    super(
      `${peer} no longer knows this session: it was stopped or restarted, has waited too long, or the same run was started again elsewhere. Run the command again.`,
    );
  }
}

/** The peer broke the protocol. */
export class ProtocolError extends PeerError {
  constructor(
    readonly peer: string,
    reason: string,
  ) {
    super(
      `${peer} broke the protocol: ${reason}. Use the same version of mobe on both sides. If they are already the same, please report this.`,
    );
  }
}

/** The peer sent more than its credit. */
export class FloodError extends PeerError {
  constructor(
    readonly peer: string,
    readonly held: number,
    readonly credit: number,
  ) {
    super(
      `${peer} sent ${held} bytes without waiting for an answer; the limit is ${credit}. Use the same version of mobe on both sides.`,
    );
  }
}

/** A group was fitted again after its worker was lost, and the result differs. */
export class UnlikeFitsError extends RunError {
  constructor(
    readonly group: string,
    readonly worker: string,
  ) {
    super(
      `A worker was lost while ${group} was written, and ${worker} computes it otherwise: the machines' processors round differently. Run the command again, with workers that are alike.`,
    );
  }
}

/** The program that reads the output stream has ended. */
export class StreamWriteError extends RunError {
  constructor(reason: string) {
    super(`Writing the stream failed: ${reason}. Did the program that reads it end?`);
  }
}

/** A stream or a conversation ended without its closing frame. */
export class TruncatedStreamError extends PeerError {
  constructor(readonly peer: string) {
    super(`The stream from ${peer} ends too early. Was the other side interrupted? Start it again.`);
  }
}

/** A tensor was damaged on the way. */
export class ChecksumError extends PeerError {
  constructor(
    readonly peer: string,
    readonly tensor: string,
  ) {
    super(`Tensor "${tensor}" from ${peer} was damaged on the way: its checksum is wrong. Run the command again.`);
  }
}

/** An error that the peer reports. `remoteName` is the error's name or code. */
export class RemoteError extends PeerError {
  constructor(
    readonly peer: string,
    readonly remoteName: string,
    readonly remoteMessage: string,
  ) {
    super(`${peer} failed (${remoteName}): ${remoteMessage}`);
  }
}

/** Files of a peer changed during the run. */
export class RemoteChangedError extends PeerError {
  constructor(readonly peer: string) {
    super(`The files that ${peer} offers changed during the run. Run the command again.`);
  }
}

/** Bytes are not a frame, or a frame is one that no peer would accept. */
export class InvalidFrameError extends RunError {
  /** @param protocol the peer's version, if the frame is a hello of another version */
  constructor(
    readonly reason: string,
    readonly protocol?: number,
  ) {
    super(`A frame is invalid: ${reason}.`);
  }
}
