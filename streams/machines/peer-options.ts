export type { PeerOptions } from '../../src/transport/peer-options.js';

/** The address on which a service listens, and the token it asks for. */
export interface ListenAt {
  readonly host: string;
  /** 0 means any free port. */
  readonly port: number;
  /** Required for any address that is not a loopback address. */
  readonly token?: string | undefined;
  /** Key and certificate, PEM. */
  readonly tls?: { readonly key: string | Buffer; readonly cert: string | Buffer } | undefined;
}

/** Callbacks of a service. The library prints nothing. */
export interface ServiceHooks {
  /** Called with a line of text when a session or a part of its work begins or ends. */
  readonly onLog?: (line: string) => void;
  /** Called when a client is refused or a session fails. Other sessions go on. */
  readonly onProblem?: (error: Error) => void;
}
