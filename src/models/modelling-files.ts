/** The modelling files of ours that native checkpoints carry, so that transformers can load them. */
import { fileURLToPath } from 'node:url';
import type { NativeForm } from './family.js';

/** Python is not compiled: it is read from src/, seen from dist/src/models/. */
const FOLDER = fileURLToPath(new URL('../../../src/models/modeling/', import.meta.url));

/** What all of them import. */
const SHARED = 'mobe_experts';

export interface ModellingFile {
  /** Absolute path. */
  readonly source: string;
  /** Its name in a checkpoint. */
  readonly target: string;
}

const file = (name: string): ModellingFile => ({ source: `${FOLDER}${name}.py`, target: `${name}.py` });

export const modellingFiles = ({ module }: NativeForm): ModellingFile[] => [module, SHARED].map(file);
