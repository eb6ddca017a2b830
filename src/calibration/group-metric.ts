/** The metric of a group as bytes. */
import type { GroupShape, Metric, MetricForm, MetricMatrix, MetricMatrixForm } from '../methods/method.js';
import { matrixElements } from '../methods/mobe/metric.js';

/** The metric of a group as a job carries it. */
export interface GroupMetric {
  readonly form: MetricForm;
  /** For each expert its matrices as f32, little-endian: those of the rows, then those of the columns, as `form` has them. */
  readonly experts: ReadonlyArray<Uint8Array<ArrayBuffer>>;
}

type Size = Pick<GroupShape, 'rows' | 'cols'>;

/** The numbers of an expert's own matrices: those of the rows, and those of both. */
export function expertNumbers(
  { rows: p, cols: d }: Size,
  { rows, columns }: MetricForm,
): { rows: number; all: number } {
  const numbers = (matrix: MetricMatrixForm | undefined, size: number): number =>
    matrix ? matrixElements(matrix, size) : 0;
  const own = numbers(rows, p);
  return { rows: own, all: own + numbers(columns, d) };
}

/** The bytes of an expert's matrices. */
export const expertBytes = (size: Size, form: MetricForm): number => 4 * expertNumbers(size, form).all;

/** Makes a metric of its bytes, without a copy where they are aligned. */
export function metricOf(size: Size, { rows, columns }: MetricForm, experts: ReadonlyArray<Uint8Array>): Metric {
  const numbers = expertNumbers(size, { rows, columns });
  const all = experts.map(floats);
  const matrix = (form: MetricMatrixForm, start: number, end: number): MetricMatrix => {
    const view = (expert: number): Float32Array => (all[expert] as Float32Array).subarray(start, end);
    return { ...form, view, read: (expert, target) => target.set(view(expert)) };
  };
  return {
    ...(rows && { rows: matrix(rows, 0, numbers.rows) }),
    ...(columns && { columns: matrix(columns, numbers.rows, numbers.all) }),
  };
}

/** The bytes as numbers. Bytes that are not aligned are copied; `slice` of a Node buffer would not copy. */
function floats(bytes: Uint8Array): Float32Array {
  const { buffer, byteOffset, byteLength } = bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes);
  return new Float32Array(buffer, byteOffset, byteLength / 4);
}
