/** How other machines are spoken to, whichever of them. */
export interface PeerOptions {
  /** The bearer token. */
  readonly token?: string | undefined;
  /** PEM of a certificate to trust instead of the public authorities. */
  readonly ca?: string | Buffer | undefined;
  /** How long a connection that broke is tried for again. */
  readonly resumeTimeoutMs?: number;
  /** How long work elsewhere may stand still, at least, before it is given up; default ten minutes. */
  readonly stallTimeoutMs?: number;
  /** A connection broke and is being made again. */
  readonly onDetached?: (reason: Error) => void;
  /** Keeps files of the hub that are read in its cache. Otherwise nothing is kept, and the cache is only read. */
  readonly cache?: boolean | undefined;
  /** A server that is read over HTTP is waited for, for more than some seconds. */
  readonly onWait?: (reason: string, ms: number) => void;
}
