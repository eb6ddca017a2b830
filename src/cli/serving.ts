import type { Command } from 'commander';
import { PLUGIN_FOLDER } from '../serving/plugin-folder.js';
import { json } from './options.js';

export function define(command: Command): void {
  command
    .option('--path', 'print the folder of the plugin alone, for "pip install"')
    .addOption(json())
    .action(({ path, json: asJson }: { path?: boolean; json?: boolean }) => {
      const text = path ? PLUGIN_FOLDER : HOW_TO_SERVE;
      process.stdout.write(`${asJson ? JSON.stringify({ path: PLUGIN_FOLDER }, null, 2) : text}\n`);
    });
}

const HOW_TO_SERVE = `A plugin lets vLLM serve native checkpoints (--format mobe). Their experts stay factors in memory. Its Python package is
in ${PLUGIN_FOLDER}

Install it beside vLLM, in the same Python environment, and serve a native checkpoint:
  pip install "$(npx mobe serving --path)"
  vllm serve <native> --served-model-name mobe

Ask it from another terminal:
  curl http://localhost:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"model": "mobe", "prompt": "Once upon a time", "max_tokens": 32}'

Standard weights (--format hf, or "mobe expand <native> <out>") need no plugin. docs/serving.md says more.`;
