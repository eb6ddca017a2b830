import { fileURLToPath } from 'node:url';

/** The Python package that lets vLLM serve native checkpoints. It is not compiled, so it lies in src/. The path is relative to dist/src/serving/. */
export const PLUGIN_FOLDER = fileURLToPath(new URL('../../../src/serving/vllm', import.meta.url));
