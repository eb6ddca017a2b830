import type { Output } from './output.js';

/** An output that discards all data, for measurements and for trying a conversion without a disk. */
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
