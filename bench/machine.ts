import { cpus, totalmem } from 'node:os';

/** The machine that the figures come from. */
export const machine = {
  cpu: cpus()[0]?.model,
  cores: cpus().length,
  memoryBytes: totalmem(),
  node: process.version,
};
