/**
 * The form of rebuilt weights in an output that stays quantised: each expert's weights take the place of those in the source, in
 * their encoding, tensors and shapes. So loaders of the source load the output, and the config need not change.
 */
import { canEncode } from '../checkpoint/encode-matrix.js';
import { type StoredEncoding, storedBytes } from '../checkpoint/encoding.js';
import type { TensorInfo } from '../checkpoint/header.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import type { ByteRange } from '../sources/files.js';

/** A range of a tensor. The source and the output have the tensor in common. */
export interface FormRange {
  readonly tensor: string;
  readonly offset: number;
  readonly bytes: number;
  /** The range in the source's files. */
  readonly source: ByteRange;
  /** Set if the rows of several matrices alternate in the range. */
  readonly rows?: AlternatingRows;
}

/** The rows `first`, `first + step`, … of a range. */
export interface AlternatingRows {
  readonly first: number;
  readonly step: number;
  readonly rowBytes: number;
}

/** How one expert's weights are stored. */
export interface SourceForm {
  readonly encoding: StoredEncoding;
  readonly data: FormRange;
  /** Undefined for plain floats. */
  readonly scales?: FormRange | undefined;
}

/** The experts of one layer and projection. */
interface Group {
  readonly layer: number;
  readonly experts: readonly StoredMatrix[];
}

/** The groups, with the forms of their weights in all layers in which every quantised expert can be encoded again. */
export function withSourceForms<G extends Group>(groups: readonly G[], source: Checkpoint): G[] {
  const find = formFinder(source);
  const layers = new Map<number, G[]>();
  for (const group of groups) layers.set(group.layer, [...(layers.get(group.layer) ?? []), group]);
  const forms = new Map<G, readonly SourceForm[]>();
  for (const own of layers.values()) {
    const found = own.map((group) => find(group.experts));
    if (found.some((it) => it === undefined)) continue;
    const all = (found as SourceForm[][]).flat();
    if (all.some(({ scales }) => scales) && !haveCommonScales(all))
      own.forEach((group, i) => {
        forms.set(group, found[i] as SourceForm[]);
      });
  }
  return groups.map((group) => {
    const own = forms.get(group);
    return own ? { ...group, forms: own } : group;
  });
}

/** Whether two matrices have one scale in common, which none of them can choose. */
function haveCommonScales(forms: readonly SourceForm[]): boolean {
  const own = forms.flatMap(({ scales }) => (scales && !scales.rows ? `${scales.offset} ${scales.tensor}` : []));
  return new Set(own).size < own.length;
}

/** Finds the forms of matrices of a checkpoint; undefined if one of them cannot be encoded again. */
export function formFinder(source: Checkpoint): (matrices: readonly StoredMatrix[]) => SourceForm[] | undefined {
  const tensorAt = tensorFinder(source);
  return (matrices) => {
    const forms: SourceForm[] = [];
    for (const matrix of matrices) {
      const form = formOf(matrix, tensorAt);
      if (!form) return undefined;
      forms.push(form);
    }
    return forms;
  };
}

function formOf(matrix: StoredMatrix, tensorAt: (range: ByteRange) => TensorInfo): SourceForm | undefined {
  const { rows, cols, encoding: seen, data, scales, besides } = matrix;
  const whole = { of: seen, rows, first: 0, step: 1, transposed: false };
  const { of: encoding, rows: height, first, step, transposed } = seen.kind === 'view' ? seen : whole;
  if (encoding.kind === 'view' || transposed || besides?.length || !canEncode(encoding)) return undefined;
  const blockRows = encoding.kind === 'codes' ? encoding.blockRows : 1;
  const isBorder = (row: number): boolean => row % blockRows === 0 || row === height;
  if (step === 1 ? !isBorder(first) || !isBorder(first + rows) : blockRows !== 1) return undefined;

  const [before, own, row] = [first, rows, 1].map((count) => storedBytes(encoding, count, cols)) as [
    Sizes,
    Sizes,
    Sizes,
  ];
  const place = (range: ByteRange, part: keyof Sizes): FormRange => {
    const { name: tensor, file, start: from } = tensorAt(range);
    const start = step === 1 ? range.start + before[part] : range.start;
    const end = step === 1 ? start + own[part] : range.end;
    return {
      ...{ tensor, offset: start - from, bytes: end - start, source: { file, start, end } },
      ...(step !== 1 && { rows: { first, step, rowBytes: row[part] } }),
    };
  };
  return { encoding, data: place(data, 'data'), scales: scales && place(scales, 'scales') };
}

type Sizes = ReturnType<typeof storedBytes>;

/** Finds the tensor that holds a range of a file. */
function tensorFinder({ tensors }: Checkpoint): (range: ByteRange) => TensorInfo {
  const byFile = new Map<string, TensorInfo[]>();
  for (const tensor of tensors.values()) {
    const known = byFile.get(tensor.file);
    if (known) known.push(tensor);
    else byFile.set(tensor.file, [tensor]);
  }
  for (const list of byFile.values()) list.sort((a, b) => a.start - b.start || a.end - b.end);
  return ({ file, start }) => {
    const list = byFile.get(file) ?? [];
    let [below, above] = [0, list.length];
    while (above - below > 1) {
      const middle = (below + above) >>> 1;
      if ((list[middle] as TensorInfo).start <= start) below = middle;
      else above = middle;
    }
    return list[below] as TensorInfo;
  };
}

/** Takes alternating rows out of a range's bytes. */
export function takeRows({ first, step, rowBytes }: AlternatingRows, bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const count = Math.ceil((bytes.length / rowBytes - first) / step);
  const taken = new Uint8Array(count * rowBytes);
  for (let row = 0; row < count; row++) {
    const from = (first + row * step) * rowBytes;
    taken.set(bytes.subarray(from, from + rowBytes), row * rowBytes);
  }
  return taken;
}

/** Puts alternating rows into a range's bytes: the reverse of `takeRows`. */
export function putRows({ first, step, rowBytes }: AlternatingRows, rows: Uint8Array, bytes: Uint8Array): void {
  for (let from = 0, to = first * rowBytes; from < rows.length; from += rowBytes, to += step * rowBytes)
    bytes.set(rows.subarray(from, from + rowBytes), to);
}

/** The ranges of tensors that the weights of groups fill, by tensor, in order. */
export function formRanges(
  groups: ReadonlyArray<{ readonly forms?: readonly SourceForm[] | undefined }>,
): Map<string, FormRange[]> {
  const found = new Map<string, Map<number, FormRange>>();
  for (const { data, scales } of groups.flatMap(({ forms = [] }) => forms))
    for (const range of scales ? [data, scales] : [data]) {
      const own = found.get(range.tensor) ?? new Map<number, FormRange>();
      found.set(range.tensor, own.set(range.offset, range)); // matrices whose rows alternate have a range in common
    }
  return new Map(
    [...found].map(([tensor, own]) => [tensor, [...own.values()].sort((a, b) => a.offset - b.offset)] as const),
  );
}
