/** The modelling files of this project, which are copied into native checkpoints so that transformers can load them. */
import { fileURLToPath } from 'node:url';
import type { SideFile } from '../checkpoint/side-files.js';
import type { NativeForm } from './family.js';

/** Python is not compiled, so it is read from src/. The path is relative to dist/src/models/. */
const pythonFolder = (path: string): string => fileURLToPath(new URL(`../../../src/${path}/`, import.meta.url));

const FOLDER = pythonFolder('models/modeling');

/** Files of the plugin for vLLM that the modelling files import, too. */
const PLUGIN = pythonFolder('serving/vllm/mobe_vllm');

/** Writes a calibration record with transformers, for models that this program cannot run. It is not copied into checkpoints. */
export const CALIBRATION_SCRIPT = `${FOLDER}calibrate.py`;

/** A modelling file and its name in a checkpoint. */
export type ModellingFile = Pick<SideFile, 'source' | 'target'>;

const file = (folder: string, name: string): ModellingFile => ({ source: `${folder}${name}.py`, target: `${name}.py` });

/** Native checkpoints of all models have these. */
const SHARED = [file(FOLDER, 'modeling_mobe'), file(PLUGIN, 'mobe_factors'), file(PLUGIN, 'mobe_fused')];

/** The modelling files of a native form. */
export const modellingFiles = ({ module }: NativeForm): ModellingFile[] => [
  ...(SHARED.some(({ target }) => target === `${module}.py`) ? [] : [file(FOLDER, module)]),
  ...SHARED,
];

/** The names of modelling files in native checkpoints of all versions. An expansion does not need them. */
export const MODELLING_NAMES: readonly string[] = [
  'modeling_mobe.py',
  'modeling_bailing_mobe.py',
  'mobe_factors.py',
  'mobe_fused.py',
  // format_version 1
  'mobe_experts.py',
  'modeling_deepseek_mobe.py',
  'modeling_qwen3_mobe.py',
];
