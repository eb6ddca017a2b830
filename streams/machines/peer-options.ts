export type { PeerOptions } from '../../src/transport/peer-options.js';

/** Where a service listens, and whom it lets in. */
export interface ListenAt {
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  /** Without one, only loopback addresses are listened on. */
  readonly token?: string | undefined;
  /** PEM. */
  readonly tls?: { readonly key: string | Buffer; readonly cert: string | Buffer } | undefined;
}

/** What a service tells while it runs. The library prints nothing. */
export interface ServiceHooks {
  /** Someone began or ended a conversation, or a part of the work: for people. */
  readonly onLog?: (line: string) => void;
  /** Someone was turned away, or a conversation failed. Nobody else is affected. */
  readonly onProblem?: (error: Error) => void;
}
