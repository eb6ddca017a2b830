/** Every limit of the wire protocol, with its reason. docs/wire.md lists them for authors of other peers. */

/** It rises with every change that an older peer would misread. Peers of different versions refuse each other. */
export const PROTOCOL_VERSION = 7;

/** Large enough that the header's cost does not matter, small enough that a slow line is soon free again. */
export const MAX_PAYLOAD_BYTES = 4 * 1024 * 1024;

/** Most headers have about 50 bytes. Requests may carry a few file names or a small plan. Anything larger is sent as a tensor. */
export const MAX_HEADER_BYTES = 64 * 1024;

/** Bytes of the u32 before a header. */
export const LENGTH_BYTES = 4;

/** The largest frame. */
export const MAX_FRAME_BYTES = LENGTH_BYTES + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES;

/** No real header is nested deeper. Deeper ones are attacks on recursive decoders. */
export const MAX_HEADER_DEPTH = 16;

/**
 * Each frame counts this many bytes against the credit, besides its own. It is about the memory that a waiting frame takes in
 * this program. So a flood of empty frames cannot take more memory than the credit.
 */
export const FRAME_OVERHEAD_BYTES = 256;

/** The largest frame must fit into the credit, or it could never be sent. */
export const MIN_CREDIT_BYTES = MAX_FRAME_BYTES + FRAME_OVERHEAD_BYTES;

/** Eight frames: enough to keep a line of 10 Gbit/s with a round trip of 20 ms busy. */
export const DEFAULT_CREDIT_BYTES = 8 * MIN_CREDIT_BYTES;

/** The longest names in published checkpoints have about 100 characters. */
export const MAX_NAME_LENGTH = 1024;

/** NumPy's and PyTorch's own limits are 64; no checkpoint has more than 5. */
export const MAX_DIMENSIONS = 16;

/** Characters of an error's message. Longer ones are cut. */
export const MAX_MESSAGE_LENGTH = 8192;

/** Tensors of one stream that may be open at once. Branches of a pipeline interleave their tensors. */
export const MAX_OPEN_TENSORS = 256;

/** This program sends two fragments a message. A proxy may split them further; an attacker might send single bytes. */
export const MAX_FRAGMENTS = 128;

/** Bytes given to the socket that the system has not taken yet. More would only delay the acks behind them. */
export const WRITE_AHEAD_BYTES = MAX_PAYLOAD_BYTES;

/** It bounds memory: each session may hold its credit twice, once each way. */
export const MAX_SESSIONS = 64;

/** Most time from the first byte of a connection to its hello. */
export const HELLO_TIMEOUT_MS = 10_000;

/** If no byte arrives for this long, the peer or the connection is lost. Peers send three heartbeats in this time. */
export const SILENCE_TIMEOUT_MS = 30_000;

/** How long a session without a connection waits for its peer. */
export const RESUME_TIMEOUT_MS = 120_000;

/** How long a first connection is retried: both sides may have been started at the same moment. */
export const CONNECT_TIMEOUT_MS = 10_000;

/** Pauses between attempts to connect. */
export const BACK_OFF_MS = { first: 100, factor: 2, most: 5_000 } as const;
