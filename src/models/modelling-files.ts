/** The modelling files of ours that native checkpoints carry, so that transformers can load them. */
import { fileURLToPath } from 'node:url';
import type { SideFile } from '../checkpoint/side-files.js';
import type { NativeForm } from './family.js';

/** Python is not compiled: it is read from src/, seen from dist/src/models/. */
const FOLDER = fileURLToPath(new URL('../../../src/models/modeling/', import.meta.url));

/** What all of them import. */
const SHARED = 'mobe_experts';

/** A file of ours and its name in a checkpoint. */
export type ModellingFile = Pick<SideFile, 'source' | 'target'>;

const file = (name: string): ModellingFile => ({ source: `${FOLDER}${name}.py`, target: `${name}.py` });

export const modellingFiles = ({ module }: NativeForm): ModellingFile[] => [module, SHARED].map(file);
