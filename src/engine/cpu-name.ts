import { cpus } from 'node:os';

/** The processor's model, as the system names it. */
export const cpuName = (): string => cpus()[0]?.model.trim() || `${process.arch} processor`;
