/** The modelling files of this project, which are copied into native checkpoints so that transformers can load them. */
import { fileURLToPath } from 'node:url';
import type { SideFile } from '../checkpoint/side-files.js';
import type { NativeForm } from './family.js';

/** Python is not compiled, so it is read from src/. The path is relative to dist/src/models/. */
const FOLDER = fileURLToPath(new URL('../../../src/models/modeling/', import.meta.url));

/** The module that all others import. */
const SHARED = 'mobe_experts';

/** A modelling file and its name in a checkpoint. */
export type ModellingFile = Pick<SideFile, 'source' | 'target'>;

const file = (name: string): ModellingFile => ({ source: `${FOLDER}${name}.py`, target: `${name}.py` });

/** The modelling files of a native form. */
export const modellingFiles = ({ module }: NativeForm): ModellingFile[] => [module, SHARED].map(file);
