/** The pass-through stage: tensors that are not factorised are copied as byte ranges, or decoded if they are quantised. */
import { floatBytes } from '../../src/checkpoint/dtype.js';
import type { StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import type { ConversionPlan, Copy } from '../../src/conversion/conversion-plan.js';
import { keptCopies, weightPlaces } from '../../src/conversion/group-places.js';
import { type GroupPlan, groupKey, groupLabel } from '../../src/conversion/group-plan.js';
import type { KeptGroupReport } from '../../src/conversion/run-report.js';
import { takeRows } from '../../src/conversion/source-form.js';
import { DroppedGroupError } from '../../src/errors.js';
import { type ByteRange, type RangeReader, READ_BYTES } from '../../src/sources/files.js';
import type { BufferPool, PooledBuffer } from '../flow/buffer-pool.js';
import type { OutputChunk, OutputRecord } from '../records.js';
import { assembleSlice, decodedRows, encodedMatrix, encodeRows } from './decode-source.js';

/** Two reads keep a disk busy while a block is handed on. More are not faster, even from the page cache. */
const READS_IN_FLIGHT = 2;

/** A block whose read has started, or what is made later. Steps are in the order of the copies. */
type Step = { readonly block: Block; readonly loaded: Promise<PooledBuffer> } | { readonly copy: Copy };

/** One read: bytes of one copy, or of several copies that follow each other in a file. */
interface Block {
  readonly range: ByteRange;
  readonly run: readonly Copy[];
}

/**
 * Copies byte ranges in chunks of at most 8 MiB. Small ranges that follow each other in a file share one read. Quantised
 * matrices are decoded. Throws `NonFiniteWeightError` and `OverflowError` for decoded matrices only: copied bytes are not
 * checked.
 * @param pool lends memory for the reads; then every chunk must be released. Without a pool, each read allocates memory.
 */
export async function* passThrough(
  copies: readonly Copy[],
  reader: RangeReader,
  pool?: BufferPool,
): AsyncGenerator<OutputChunk> {
  const waiting: Step[] = [];
  const coming = steps(copies);
  const load = async ({ range }: Block): Promise<PooledBuffer> => {
    if (!pool) return { bytes: await reader.readRange(range), release() {} };
    const buffer = await pool.take();
    await reader.read(range.file, range.start, buffer.bytes.subarray(0, range.end - range.start));
    return buffer;
  };
  try {
    for (;;) {
      while (waiting.length < READS_IN_FLIGHT) {
        const { value, done } = coming.next();
        if (done) break;
        if ('copy' in value) {
          waiting.push(value);
          continue;
        }
        const loaded = load(value.block);
        loaded.catch(() => {}); // awaiting it later throws the error
        waiting.push({ ...value, loaded });
      }
      const step = waiting.shift();
      if (!step) return;
      if ('copy' in step) yield* made(step.copy, reader, pool);
      else yield* cut(step.block, await step.loaded);
    }
  } finally {
    // All reads must have ended before the caller closes the files.
    for (const step of waiting) if ('loaded' in step) await step.loaded.catch(() => {});
  }
}

/** Whether a copy is more than a range of bytes. */
const isMade = ({ decode, assemble, constant }: Copy): boolean => (decode ?? assemble ?? constant) !== undefined;

function* steps(copies: readonly Copy[]): Generator<{ block: Block } | { copy: Copy }> {
  for (const run of neighbours(copies)) {
    const [copy] = run as [Copy];
    if (isMade(copy)) {
      yield { copy };
      continue;
    }
    const { file, start: first } = copy.source;
    const { end } = (run.at(-1) as Copy).source;
    for (let start = first; start < end; start += READ_BYTES) {
      yield { block: { range: { file, start, end: Math.min(end, start + READ_BYTES) }, run } };
    }
  }
}

/** Cuts a block into its parts of tensors. Releasing the last part releases the block. */
function* cut({ range, run }: Block, buffer: PooledBuffer): Generator<OutputChunk> {
  const parts = run.filter(({ source }) => source.start < range.end && source.end > range.start);
  let left = parts.length;
  const release = (): void => {
    if (--left === 0) buffer.release();
  };
  for (const { target, offset, source } of parts) {
    const from = Math.max(source.start, range.start);
    const to = Math.min(source.end, range.end);
    const data = buffer.bytes.subarray(from - range.start, to - range.start);
    yield { tensor: target, offset: offset + from - source.start, data, release };
  }
}

async function* made(
  { target, offset, decode, assemble, constant }: Copy,
  reader: RangeReader,
  pool: BufferPool | undefined,
): AsyncGenerator<OutputChunk> {
  if (constant) {
    yield { tensor: target, offset, data: constant };
    return;
  }
  if (assemble) {
    const { slice, dtype } = assemble;
    yield { tensor: target, offset, data: await assembleSlice(slice, slice.matrices, dtype, reader) };
    return;
  }
  const { matrix, dtype } = decode as NonNullable<Copy['decode']>;
  const rowBytes = matrix.cols * floatBytes(dtype);
  for await (const { first, values } of decodedRows(matrix, reader)) {
    const buffer = await pool?.take();
    const data = encodeRows(matrix, values, dtype, buffer?.bytes);
    yield {
      tensor: target,
      offset: offset + first * rowBytes,
      data,
      ...(buffer && { release: buffer.release }),
    };
  }
}

/** Splits copies into runs: ranges that follow each other in a file without a gap and fit into one read. */
function* neighbours(copies: readonly Copy[]): Generator<Copy[]> {
  let run: Copy[] = [];
  for (const copy of copies) {
    const last = run.at(-1);
    const joins =
      last !== undefined &&
      !isMade(last) &&
      !isMade(copy) &&
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

/** The weights of a group as they are in the source, in the dtype and the places of rebuilt ones. */
export async function* keptWeights(
  group: GroupPlan,
  plan: Pick<ConversionPlan, 'format' | 'separate'>,
  reader: RangeReader,
): AsyncGenerator<OutputChunk> {
  yield* passThrough(keptCopies(group, plan), reader);
  for (const [expert, places] of weightPlaces(group, plan).entries())
    for (const { tensor, offset, part } of places) {
      if (!part) continue;
      const matrix = group.experts[expert] as StoredMatrix;
      const data =
        'rows' in part
          ? takeRows(part.rows, await reader.readRange(part.range.source))
          : await encodedMatrix(matrix, group.dtype, reader);
      yield { tensor, offset, data, part };
    }
}

/**
 * A group that is not fitted: its weights as they are, and its report. Throws `DroppedGroupError` if the output has no places
 * for weights.
 */
export async function* keepGroup(
  group: GroupPlan,
  plan: Pick<ConversionPlan, 'format' | 'separate'>,
  reader: RangeReader,
): AsyncGenerator<OutputRecord> {
  if (plan.format !== 'hf' || group.coded) throw new DroppedGroupError(groupLabel(group));
  yield* keptWeights(group, plan, reader);
  yield { finished: { ...groupKey(group), seconds: 0, keptError: null, dropped: true } satisfies KeptGroupReport };
}
