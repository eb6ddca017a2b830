/** Tensors that are not factorised: copied as byte ranges, never decoded. */
import type { TensorInfo } from '../src/checkpoint/header.js';
import { READ_BYTES, type TensorReader } from '../src/checkpoint/tensor-reader.js';
import type { OutputChunk } from './records.js';

/** Reads runs of neighbouring tensors together, at most 8 MiB at a time. */
export async function* passThrough(tensors: readonly TensorInfo[], reader: TensorReader): AsyncGenerator<OutputChunk> {
  for (const run of neighbours(tensors)) {
    const first = run[0] as TensorInfo;
    const end = (run.at(-1) as TensorInfo).end;
    for (let start = first.start; start < end; start += READ_BYTES) {
      const range = { file: first.file, start, end: Math.min(end, start + READ_BYTES) };
      const bytes = await reader.readRange(range);
      for (const tensor of run) {
        const from = Math.max(tensor.start, range.start);
        const to = Math.min(tensor.end, range.end);
        if (from < to)
          yield {
            tensor: tensor.name,
            offset: from - tensor.start,
            data: bytes.subarray(from - range.start, to - range.start),
          };
      }
    }
  }
}

/** Tensors without a gap between them in one file, cut so that small ones share a read and large ones have their own. */
function* neighbours(tensors: readonly TensorInfo[]): Generator<TensorInfo[]> {
  let run: TensorInfo[] = [];
  for (const tensor of tensors) {
    const last = run.at(-1);
    const joins =
      last?.file === tensor.file &&
      last.end === tensor.start &&
      tensor.end - (run[0] as TensorInfo).start <= READ_BYTES;
    if (!joins && run.length) {
      yield run;
      run = [];
    }
    run.push(tensor);
  }
  if (run.length) yield run;
}
