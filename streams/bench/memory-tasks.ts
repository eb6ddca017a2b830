/** Stages without disk access. They measure one core and its memory. */
import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { decodeRows, type Encoding, storedBytes } from '../../src/checkpoint/encoding.js';
import { measureMoments } from '../../src/linalg/moments.js';
import { type Outcome, startTimer } from './sample.js';
import type { MemoryTask } from './task.js';

/** Experts of 2048 × 2048. There are several, so that the next one is no longer in the CPU's cache. */
const ROWS = 2048;
const COLS = 2048;
const EXPERTS = 8;
/** DeepSeek-V3's block size. */
const BLOCK = 128;

const WARM_UP_SECONDS = 0.2;
const SECONDS = 0.5;

const ENCODINGS: Readonly<Partial<Record<MemoryTask, Encoding>>> = {
  bf16: { kind: 'float', dtype: 'BF16' },
  normalise: { kind: 'float', dtype: 'BF16' },
  fp16: { kind: 'float', dtype: 'F16' },
  fp8: { kind: 'codes', dtype: 'F8_E4M3', scaleDtype: 'F32', blockRows: BLOCK, blockCols: BLOCK },
};

/** Processes one expert after another for `SECONDS`, after a warm-up for V8's compiler. */
export async function inMemory(what: MemoryTask): Promise<Outcome> {
  const { size, turn } = prepare(what);
  let expert = 0;
  const run = (seconds: number): Outcome => {
    const stop = startTimer();
    const end = performance.now() + 1000 * seconds;
    let bytes = 0;
    do {
      turn(expert++ % EXPERTS);
      bytes += size;
    } while (performance.now() < end);
    return { bytes, besideLoop: true, ...stop() };
  };
  run(WARM_UP_SECONDS);
  return run(SECONDS);
}

function prepare(what: MemoryTask): { size: number; turn: (expert: number) => void } {
  const encoding = ENCODINGS[what] ?? ENCODINGS.bf16;
  const { data, scales } = storedBytes(encoding as Encoding, ROWS, COLS);
  const target = new Float32Array(ROWS * COLS);
  const experts = Array.from({ length: EXPERTS }, (_, i) => finiteBytes(data, i));
  const at = (i: number): Uint8Array => experts[i] as Uint8Array;
  const ones = new Uint8Array(new Float32Array(scales / 4).fill(1).buffer);
  switch (what) {
    case 'copy': {
      // It writes as many bytes as decoding 16-bit numbers does. As there, the rate counts half of them.
      const decoded = experts.map(() => new Float32Array(ROWS * COLS).fill(1));
      return { size: 2 * ROWS * COLS, turn: (i) => target.set(decoded[i] as Float32Array) };
    }
    case 'crc32':
      return { size: data, turn: (i) => crc32(at(i)) };
    case 'sha256':
      return { size: data, turn: (i) => createHash('sha256').update(at(i)).digest() };
    default: {
      const decode = (i: number): void =>
        decodeRows(encoding as Encoding, COLS, { first: 0, count: ROWS }, at(i), ones, target);
      if (what !== 'normalise') return { size: data, turn: decode };
      return {
        size: data,
        turn(i) {
          decode(i);
          measureMoments(target);
        },
      };
    }
  }
}

/** Bytes that are no NaN as bf16, f16 or fp8: some bits of the exponent are always 0. */
function finiteBytes(size: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(size);
  let state = seed + 1;
  for (let i = 0; i < size; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    bytes[i] = (state >>> 24) & 0xbb;
  }
  return bytes;
}
