/** Products of blocks of row-major f64 matrices, for the decompositions that work in blocks. */

/** A block of a row-major matrix: its first element, and the distance between its rows. */
export interface Block {
  readonly data: Float64Array;
  readonly at: number;
  readonly stride: number;
}

/**
 * target += sign · X·Yᵀ for X (rows, depth), Y (cols, depth) and a target (rows, cols). Tiles of 4 × 4 sums stay in registers. The
 * order of each sum depends on `depth` alone, so results do not depend on how a caller cuts rows and columns.
 */
export function addProduct(
  target: Block,
  sign: 1 | -1,
  x: Block,
  y: Block,
  [rows, cols, depth]: readonly [rows: number, cols: number, depth: number],
): void {
  const fullRows = rows - (rows % 4);
  const fullCols = cols - (cols % 4);
  for (let i = 0; i < fullRows; i += 4) for (let j = 0; j < fullCols; j += 4) addTile(target, sign, x, y, i, j, depth);
  for (let i = 0; i < rows; i++)
    for (let j = i < fullRows ? fullCols : 0; j < cols; j++) {
      let sum = 0;
      const xAt = x.at + i * x.stride;
      const yAt = y.at + j * y.stride;
      for (let k = 0; k < depth; k++) sum += (x.data[xAt + k] as number) * (y.data[yAt + k] as number);
      addAt(target, i, j, sign * sum);
    }
}

function addTile(target: Block, sign: number, x: Block, y: Block, i: number, j: number, depth: number): void {
  const X = x.data;
  const Y = y.data;
  let [x0, y0] = [x.at + i * x.stride, y.at + j * y.stride];
  const [x1, x2, x3] = [x.stride, 2 * x.stride, 3 * x.stride];
  const [y1, y2, y3] = [y.stride, 2 * y.stride, 3 * y.stride];
  let s00 = 0;
  let s01 = 0;
  let s02 = 0;
  let s03 = 0;
  let s10 = 0;
  let s11 = 0;
  let s12 = 0;
  let s13 = 0;
  let s20 = 0;
  let s21 = 0;
  let s22 = 0;
  let s23 = 0;
  let s30 = 0;
  let s31 = 0;
  let s32 = 0;
  let s33 = 0;
  for (let k = 0; k < depth; k++, x0++, y0++) {
    const a0 = X[x0] as number;
    const a1 = X[x0 + x1] as number;
    const a2 = X[x0 + x2] as number;
    const a3 = X[x0 + x3] as number;
    const b0 = Y[y0] as number;
    const b1 = Y[y0 + y1] as number;
    const b2 = Y[y0 + y2] as number;
    const b3 = Y[y0 + y3] as number;
    s00 += a0 * b0;
    s01 += a0 * b1;
    s02 += a0 * b2;
    s03 += a0 * b3;
    s10 += a1 * b0;
    s11 += a1 * b1;
    s12 += a1 * b2;
    s13 += a1 * b3;
    s20 += a2 * b0;
    s21 += a2 * b1;
    s22 += a2 * b2;
    s23 += a2 * b3;
    s30 += a3 * b0;
    s31 += a3 * b1;
    s32 += a3 * b2;
    s33 += a3 * b3;
  }
  const sums = [s00, s01, s02, s03, s10, s11, s12, s13, s20, s21, s22, s23, s30, s31, s32, s33];
  for (const [n, sum] of sums.entries()) addAt(target, i + (n >> 2), j + (n & 3), sign * sum);
}

function addAt({ data, at, stride }: Block, i: number, j: number, value: number): void {
  const k = at + i * stride + j;
  data[k] = (data[k] as number) + value;
}
