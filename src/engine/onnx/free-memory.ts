import { MessageChannel } from 'node:worker_threads';
import type * as ort from 'onnxruntime-node';

/** Smaller buffers are left to the garbage collection. */
const LEAST_BYTES = 2 ** 16;

/** Buffers that are transferred to a closed port are freed at once. (`ArrayBuffer.transfer` does the same from Node 22 on.) */
const { port1: closed } = new MessageChannel();
closed.close();

/** Frees the memory of an array at once. The array is empty then. Memory that it shares with other arrays is left as it is. */
export function freeArray({ buffer, byteLength }: Float32Array): void {
  if (byteLength >= LEAST_BYTES && byteLength === buffer.byteLength) closed.postMessage(null, [buffer as ArrayBuffer]);
}

/**
 * Frees the results of a run that got memory for them: ONNX Runtime's binding writes to that memory, and then copies it to new arrays
 * that nobody asked for. They would wait for the garbage collection, which lets some hundred MB of them gather.
 */
export function freeCopies(
  results: ort.InferenceSession.ReturnType,
  given: Readonly<Record<string, ort.Tensor>>,
): void {
  for (const [name, { data }] of Object.entries(results)) {
    const copy = data as Float32Array;
    const own = given[name]?.data as Float32Array | undefined;
    if (copy.buffer !== own?.buffer) freeArray(copy);
  }
}
