import { cpus, totalmem } from 'node:os';

/** What the figures were measured on. */
export const machine = {
  cpu: cpus()[0]?.model,
  cores: cpus().length,
  memoryBytes: totalmem(),
  node: process.version,
};
