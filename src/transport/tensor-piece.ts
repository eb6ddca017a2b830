/** Part of a tensor. Pieces of one tensor come in order from its first byte. Pieces of several tensors may alternate. */
export interface TensorPiece {
  readonly name: string;
  /** Name as in a safetensors header. */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Size of the whole tensor, bytes. */
  readonly bytes: number;
  /** Position of `data` in the tensor, bytes. */
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
