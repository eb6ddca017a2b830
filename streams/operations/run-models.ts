/** Opens models to run them, with one engine for all and an equal share of memory for each. */

import type { Checkpoint } from '../../src/checkpoint/open-checkpoint.js';
import { chooseEngine, type EngineChoice } from '../../src/engine/choose-engine.js';
import { createEngine } from '../../src/engine/create-engine.js';
import type { EngineFacts } from '../../src/engine/engine.js';
import { configReader } from '../../src/inference/config-reader.js';
import { type LanguageModel, openLanguageModel } from '../../src/inference/language-model.js';
import { PROCESS_BYTES, TENSOR_BYTES } from '../../src/inference/memory-budget.js';
import { usefulThreads } from '../../src/inference/run-options.js';
import { Runner } from '../../src/inference/runner.js';

/** Settings of `openModels`. */
export interface RunningSettings {
  readonly engine: EngineChoice;
  readonly threads?: number | undefined;
  /** Peak resident memory of the process, in bytes. */
  readonly maxMemory: number;
}

/** A model and the largest sizes that it must handle. */
export interface ModelUse {
  readonly checkpoint: Checkpoint;
  /** Tokens whose keys and values are kept, over all sequences. */
  readonly keptTokens: number;
  /** Tokens that go through a layer together. */
  readonly batchTokens: number;
  /** `ModelOptions.sequenceLength` */
  readonly sequenceLength?: number | undefined;
  readonly expertsPerToken?: number | undefined;
}

/** Open models and their engine. */
export interface RunningModels {
  readonly engine: EngineFacts;
  readonly models: readonly LanguageModel[];
  /** Bytes of `maxMemory` that are not for models: Node, the engine and headers. */
  readonly processBytes: number;
  close(): Promise<void>;
}

/** Opens models. They run on the calling thread, because their steps are short and the caller has no other work. */
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
  const processBytes = PROCESS_BYTES + TENSOR_BYTES * tensors;
  const bytes = Math.floor((maxMemory - processBytes) / uses.length);
  const models = uses.map(({ checkpoint, ...use }) => openLanguageModel(checkpoint, { ...use, runner, bytes, signal }));
  return {
    engine,
    models,
    processBytes,
    async close() {
      for (const model of models) await model.close();
      await runner.dispose();
    },
  };
}
