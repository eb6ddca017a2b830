/** How long servers are waited for. */
export interface WebTiming {
  /** An answer that makes no progress for so long is given up and asked for again. */
  readonly stallMs: number;
  /** The wait after the first failure. It doubles with each further one. */
  readonly firstWaitMs: number;
  readonly mostWaitMs: number;
  /** How long a server that has answered before may fail without progress. */
  readonly patienceMs: number;
  /** The same for a server that has never answered: the address may be wrong. */
  readonly firstPatienceMs: number;
  /** The longest wait that a server may ask for. The hub's windows have 5 minutes. */
  readonly longestToldWaitMs: number;
}

export const WEB_TIMING: WebTiming = {
  stallMs: 30_000,
  firstWaitMs: 500,
  mostWaitMs: 30_000,
  patienceMs: 300_000,
  firstPatienceMs: 10_000,
  longestToldWaitMs: 900_000,
};

/** Options for sources that are read over HTTP. */
export interface WebOptions {
  /** Where settings and credentials are looked for (HF_TOKEN, AWS_REGION, …); default: `process.env`. */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined;
  readonly timing?: Partial<WebTiming> | undefined;
  /** The size of the parts in which long files are sent to S3. */
  readonly partBytes?: number | undefined;
  /** Called before a wait of more than some seconds, with its reason. */
  readonly onWait?: ((reason: string, ms: number) => void) | undefined;
}
