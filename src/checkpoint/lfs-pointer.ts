/** Recognises git-lfs pointers: short files that git puts in the place of large ones if it runs without git-lfs. */

/** A pointer is three short lines (git-lfs specification, "The Pointer"). */
export const MAX_POINTER_BYTES = 1024;

const FIRST_LINE = Buffer.from('version https://git-lfs.github.com/spec/');

/** @param bytes the whole file, or at least its first `MAX_POINTER_BYTES` */
export const isLfsPointer = (bytes: Uint8Array): boolean =>
  bytes.byteLength < MAX_POINTER_BYTES && FIRST_LINE.equals(bytes.subarray(0, FIRST_LINE.byteLength));
