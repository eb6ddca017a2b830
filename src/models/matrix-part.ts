/** A projection as a part of an expert's fused matrix: its place in the tensor, and its encoding as a view. */
import type { Encoding, StoredEncoding } from '../checkpoint/encoding.js';
import type { MatrixPlace, StoredMatrix } from '../checkpoint/stored-matrix.js';

/** How an expert's matrix holds its projections. */
export interface Division {
  /** The number of projections. */
  readonly count: number;
  /** The outputs of the projections alternate. Otherwise they follow each other. */
  readonly interleaved: boolean;
  /** The matrix is (inputs, outputs) instead of (outputs, inputs). */
  readonly transposed: boolean;
}

/** A projection's size: outputs × inputs. */
type Size = Pick<StoredMatrix, 'rows' | 'cols'>;

/** The first output of a part, and the distance between its outputs. */
const outputsOf = ({ count, interleaved }: Division, part: number, { rows }: Size) =>
  interleaved ? { first: part, step: count } : { first: part * rows, step: 1 };

/** The place of a part in a tensor in which the expert's matrix begins at element `start`. */
export function placeOfPart(tensor: string, start: number, division: Division, part: number, size: Size): MatrixPlace {
  const { count, interleaved, transposed } = division;
  const { rows, cols } = size;
  const { first, step } = outputsOf(division, part, size);
  const steps = transposed ? { row: step, column: count * rows } : { row: step * cols, column: 1 };
  return {
    tensor,
    element: start + first * (transposed ? 1 : cols),
    ...((transposed || interleaved) && { steps }),
  };
}

/** A part as a view of the expert's matrix, which is stored as `of`. */
export function viewOfPart(of: StoredEncoding, division: Division, part: number, size: Size): Encoding {
  const { count, transposed } = division;
  const { rows, cols } = size;
  const shape = transposed ? { rows: cols, cols: count * rows } : { rows: count * rows, cols };
  return { kind: 'view', of, ...shape, ...outputsOf(division, part, size), transposed };
}
