/** The modelling files of this project, which are copied into native checkpoints so that transformers can load them. */
import { fileURLToPath } from 'node:url';
import type { SideFile } from '../checkpoint/side-files.js';
import type { NativeForm } from './family.js';

/** Python is not compiled, so it is read from src/. The path is relative to dist/src/models/. */
const FOLDER = fileURLToPath(new URL('../../../src/models/modeling/', import.meta.url));

/** Writes a calibration record with transformers, for models that this program cannot run. It is not copied into checkpoints. */
export const CALIBRATION_SCRIPT = `${FOLDER}calibrate.py`;

/** The module that all others import. */
const SHARED = 'modeling_mobe';

/** A modelling file and its name in a checkpoint. */
export type ModellingFile = Pick<SideFile, 'source' | 'target'>;

const file = (name: string): ModellingFile => ({ source: `${FOLDER}${name}.py`, target: `${name}.py` });

/** The modelling files of a native form. */
export const modellingFiles = ({ module }: NativeForm): ModellingFile[] =>
  [...new Set([module, SHARED])].map((name) => file(name));

/** The names of modelling files in native checkpoints of all versions. An expansion does not need them. */
export const MODELLING_NAMES: readonly string[] = [
  'modeling_mobe.py',
  'modeling_bailing_mobe.py',
  // format_version 1
  'mobe_experts.py',
  'modeling_deepseek_mobe.py',
  'modeling_qwen3_mobe.py',
];
