import { once } from 'node:events';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from 'vitest';
import type { OutputChunk } from '../records.js';
import { writeOutput } from './write-output.js';

const chunks = (count: number, onRelease: () => void = () => {}): OutputChunk[] =>
  Array.from({ length: count }, (_, i) => ({ tensor: 't', offset: i, data: Uint8Array.of(i), release: onRelease }));

/** Writes that take a moment, counted. */
function slowOutput() {
  const state = { now: 0, most: 0, written: 0 };
  return {
    state,
    output: {
      async write() {
        state.most = Math.max(state.most, ++state.now);
        await delay(2);
        state.now--;
        state.written++;
      },
    },
  };
}

test('two writes are under way at a time, and all are done at the end', async () => {
  const { state, output } = slowOutput();
  const counted: number[] = [];
  let released = 0;
  const input = chunks(9, () => released++);
  await pipeline(Readable.from(input), writeOutput(output, { onBytes: (bytes) => counted.push(bytes) }));
  expect(state).toEqual({ now: 0, most: 2, written: 9 });
  expect(counted).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
  expect(released).toBe(9);
});

test('a write that fails after the next one was begun ends the stream', async () => {
  let writes = 0;
  const output = {
    async write() {
      writes++;
      await delay(writes === 1 ? 5 : 20);
      if (writes > 0) throw new Error('the disk is full');
    },
  };
  const sink = writeOutput(output);
  for (const chunk of chunks(2)) sink.write(chunk);
  const [error] = (await once(sink, 'error')) as [Error];
  expect(error.message).toBe('the disk is full');
});

test('the end waits until every finished group is noted', async () => {
  const report = { layer: 0, projection: 'gate_proj', group: 0, groups: 1, seconds: 0 } as const;
  let noted = false;
  await pipeline(
    Readable.from([...chunks(1), { finished: report }]),
    writeOutput(slowOutput().output, {
      async onFinished(it) {
        expect(it).toEqual(report);
        await delay(10);
        noted = true;
      },
    }),
  );
  expect(noted).toBe(true);
});

test('a note that fails ends the stream', async () => {
  const report = { layer: 0, projection: 'gate_proj', group: 0, groups: 1, seconds: 0 } as const;
  const failing = pipeline(
    Readable.from([{ finished: report }, ...chunks(3)]),
    writeOutput(slowOutput().output, { onFinished: () => Promise.reject(new Error('the journal is full')) }),
  );
  await expect(failing).rejects.toThrow('the journal is full');
});
