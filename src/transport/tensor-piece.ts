/** Part of a tensor, on its way. Pieces of one tensor follow each other from its first byte; tensors may be interleaved. */
export interface TensorPiece {
  readonly name: string;
  /** As in a safetensors header. */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Of the whole tensor. */
  readonly bytes: number;
  /** Of `data`, in bytes from the tensor's first. */
  readonly offset: number;
  readonly data: Uint8Array;
}

/** A tensor of bytes in one piece. */
export const wholePiece = (name: string, data: Uint8Array): TensorPiece => ({
  name,
  dtype: 'U8',
  shape: [data.byteLength],
  bytes: data.byteLength,
  offset: 0,
  data,
});
