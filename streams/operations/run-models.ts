/** Opens models to run them: one engine for all, and the memory shared out. */

import type { Checkpoint } from '../../src/checkpoint/open-checkpoint.js';
import { chooseEngine, type EngineChoice } from '../../src/engine/choose-engine.js';
import { createEngine } from '../../src/engine/create-engine.js';
import type { EngineFacts } from '../../src/engine/engine.js';
import { configReader } from '../../src/inference/config-reader.js';
import { type LanguageModel, openLanguageModel } from '../../src/inference/language-model.js';
import { PROCESS_BYTES, TENSOR_BYTES } from '../../src/inference/memory-budget.js';
import { usefulThreads } from '../../src/inference/run-options.js';
import { Runner } from '../../src/inference/runner.js';

export interface RunningSettings {
  readonly engine: EngineChoice;
  readonly threads?: number | undefined;
  readonly maxMemory: number;
}

/** What each model will be asked for at most. */
export interface ModelUse {
  readonly checkpoint: Checkpoint;
  readonly keptTokens: number;
  readonly batchTokens: number;
  readonly expertsPerToken?: number | undefined;
}

export interface RunningModels {
  readonly engine: EngineFacts;
  readonly models: readonly LanguageModel[];
  close(): Promise<void>;
}

/** Runs on this thread: a model's steps are short, and there is nothing else to do meanwhile. */
export async function openModels(
  uses: readonly ModelUse[],
  { engine: choice, threads, maxMemory }: RunningSettings,
  signal?: AbortSignal,
): Promise<RunningModels> {
  const widths = uses.map(({ checkpoint }) => configReader(checkpoint).number('hidden_size'));
  const useful = usefulThreads(threads, Math.max(...widths));
  const chosen = await chooseEngine(choice, useful);
  const engine = await createEngine(chosen.name, { threads: useful });
  const runner = new Runner(engine);
  const tensors = uses.reduce((sum, { checkpoint }) => sum + checkpoint.tensors.size, 0);
  const bytes = Math.floor((maxMemory - PROCESS_BYTES - TENSOR_BYTES * tensors) / uses.length);
  const models = uses.map(({ checkpoint, ...use }) => openLanguageModel(checkpoint, { ...use, runner, bytes, signal }));
  return {
    engine,
    models,
    async close() {
      for (const model of models) await model.close();
      await runner.dispose();
    },
  };
}
