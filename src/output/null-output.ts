import type { Output } from './output.js';

/** An output that throws away what it is given: for measurements, and to try a conversion out without a disk. */
export const nullOutput = (): Output => ({
  async reserve() {},
  async write() {},
  async writeText() {},
  async writeFile(_file, _bytes, content) {
    for await (const _ of content);
  },
  async commit() {},
  abandon: async () => false,
});
