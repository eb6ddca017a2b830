/** What is not factorised: copied as byte ranges, or decoded where it is quantised. */
import { allFinite, encodeFloats } from '../src/checkpoint/codec.js';
import { floatBytes } from '../src/checkpoint/dtype.js';
import { decodeRows, storedBytes } from '../src/checkpoint/encoding.js';
import { type RangeReader, READ_BYTES } from '../src/checkpoint/files.js';
import { checkDeclaredShape } from '../src/checkpoint/stored-matrix.js';
import type { Copy } from '../src/conversion/plan.js';
import { NonFiniteWeightError, OverflowError } from '../src/errors.js';
import type { OutputChunk } from './records.js';

/** At most 8 MiB at a time; runs of neighbouring small ranges are read together. */
export async function* passThrough(copies: readonly Copy[], reader: RangeReader): AsyncGenerator<OutputChunk> {
  for (const run of neighbours(copies)) {
    const [first] = run as [Copy];
    if (first.decode) yield* decoded(first, first.decode, reader);
    else yield* copied(run, reader);
  }
}

async function* copied(run: readonly Copy[], reader: RangeReader): AsyncGenerator<OutputChunk> {
  const { file, start: first } = (run[0] as Copy).source;
  const { end } = (run.at(-1) as Copy).source;
  for (let start = first; start < end; start += READ_BYTES) {
    const range = { file, start, end: Math.min(end, start + READ_BYTES) };
    const bytes = await reader.readRange(range);
    for (const { target, offset, source } of run) {
      const from = Math.max(source.start, range.start);
      const to = Math.min(source.end, range.end);
      if (from < to) {
        const data = bytes.subarray(from - range.start, to - range.start);
        yield { tensor: target, offset: offset + from - source.start, data };
      }
    }
  }
}

/** Some rows at a time. The scales are few and are read whole. */
async function* decoded(
  { target, offset, source }: Copy,
  { matrix, dtype }: NonNullable<Copy['decode']>,
  reader: RangeReader,
): AsyncGenerator<OutputChunk> {
  const { name, encoding, rows, cols } = matrix;
  const { data: rowBytes } = storedBytes(encoding, 1, cols);
  const scales = matrix.scales ? await reader.readRange(matrix.scales) : new Uint8Array(0);
  await checkDeclaredShape(reader, matrix);
  const rowsAtOnce = Math.max(1, Math.floor(READ_BYTES / (4 * cols)));
  const values = new Float32Array(Math.min(rows, rowsAtOnce) * cols);
  for (let first = 0; first < rows; first += rowsAtOnce) {
    const count = Math.min(rowsAtOnce, rows - first);
    const start = source.start + first * rowBytes;
    const bytes = await reader.readRange({ file: source.file, start, end: start + count * rowBytes });
    const part = values.subarray(0, count * cols);
    decodeRows(encoding, cols, { first, count }, bytes, scales, part);
    const data = encodeFloats(dtype, part);
    if (!allFinite(dtype, data)) {
      const bad = part.reduce((sum, value) => sum + (Number.isFinite(value) ? 0 : 1), 0);
      throw bad ? new NonFiniteWeightError(name, source.file, bad) : new OverflowError(name, dtype);
    }
    yield { tensor: target, offset: offset + first * cols * floatBytes(dtype), data };
  }
}

/** Copies without a gap between them in one file, cut so that small ones share a read and large ones have their own. */
function* neighbours(copies: readonly Copy[]): Generator<Copy[]> {
  let run: Copy[] = [];
  for (const copy of copies) {
    const last = run.at(-1);
    const joins =
      last !== undefined &&
      !last.decode &&
      !copy.decode &&
      last.source.file === copy.source.file &&
      last.source.end === copy.source.start &&
      copy.source.end - (run[0] as Copy).source.start <= READ_BYTES;
    if (!joins && run.length) {
      yield run;
      run = [];
    }
    run.push(copy);
  }
  if (run.length) yield run;
}
