/** Every cap of the wire protocol, and its reason. docs/wire.md states them for whoever writes a peer. */

/** Raised by any change that an older peer would misread; peers of different versions refuse each other. */
export const PROTOCOL_VERSION = 3;

/** Large enough that a frame costs far more than its header, small enough that a slow line is never busy long with one. */
export const MAX_PAYLOAD_BYTES = 4 * 1024 * 1024;

/** Headers are some 50 bytes; requests may carry a few file names or a small plan. Anything large is a tensor. */
export const MAX_HEADER_BYTES = 64 * 1024;

/** The u32 before a header. */
export const LENGTH_BYTES = 4;

export const MAX_FRAME_BYTES = LENGTH_BYTES + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES;

/** Deeper headers are an attack on whoever walks them. */
export const MAX_HEADER_DEPTH = 16;

/**
 * What a frame counts against a credit besides its own bytes: about what a waiting frame takes in this program, so that a
 * flood of empty frames cannot take more memory than the credit says.
 */
export const FRAME_OVERHEAD_BYTES = 256;

/** The largest frame must fit, or it could never be sent. */
export const MIN_CREDIT_BYTES = MAX_FRAME_BYTES + FRAME_OVERHEAD_BYTES;

/** Eight frames: enough to keep a line of 10 Gbit/s and 20 ms busy. */
export const DEFAULT_CREDIT_BYTES = 8 * MIN_CREDIT_BYTES;

/** The longest names in published checkpoints have about 100 characters. */
export const MAX_NAME_LENGTH = 1024;

/** NumPy's and PyTorch's own limits are 64; no checkpoint has more than 5. */
export const MAX_DIMENSIONS = 16;

export const MAX_MESSAGE_LENGTH = 8192;

/** Tensors of one stream that may be under way at once: branches of a pipeline interleave theirs. */
export const MAX_OPEN_TENSORS = 256;

/** We send two fragments a message; an intermediary may cut them up, a stranger may cut them into single bytes. */
export const MAX_FRAGMENTS = 128;

/** Given to the socket and not yet taken by the system. More would only delay the acks that queue behind it. */
export const WRITE_AHEAD_BYTES = MAX_PAYLOAD_BYTES;

/** Each session may hold its credit twice, once each way. */
export const MAX_SESSIONS = 64;

/** From the first byte of a connection to its hello. */
export const HELLO_TIMEOUT_MS = 10_000;

/** No byte for this long: the peer, or the way to it, is gone. Peers send a heartbeat three times as often. */
export const SILENCE_TIMEOUT_MS = 30_000;

/** How long a cut session waits for its peer before it is given up. */
export const RESUME_TIMEOUT_MS = 120_000;

/** How long a first connection is tried: both sides may have been started at the same moment. */
export const CONNECT_TIMEOUT_MS = 10_000;

export const BACK_OFF_MS = { first: 100, factor: 2, most: 5_000 } as const;
