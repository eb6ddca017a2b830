/** Opens models to run them, with one engine for all and an equal share of memory for each. */

import type { Checkpoint } from '../../src/checkpoint/open-checkpoint.js';
import { chooseEngine, type EngineChoice } from '../../src/engine/choose-engine.js';
import { createEngine } from '../../src/engine/create-engine.js';
import type { EngineFacts } from '../../src/engine/engine.js';
import { BudgetTooSmallError, inWhole } from '../../src/errors.js';
import { configReader } from '../../src/inference/config-reader.js';
import { type LanguageModel, type ModelOptions, openLanguageModel } from '../../src/inference/language-model.js';
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

/**
 * Opens models that share a budget in equal parts. Throws `BudgetTooSmallError` with a whole budget that does for all of them.
 * @param wholeOf bytes of a part → bytes of the whole
 */
function openWithin(
  wholeBytes: number,
  wholeOf: (partBytes: number) => number,
  uses: readonly ModelUse[],
  shared: Pick<ModelOptions, 'runner' | 'bytes' | 'signal'>,
): LanguageModel[] {
  const refused: BudgetTooSmallError[] = [];
  const models = uses.flatMap(({ checkpoint, ...use }) => {
    try {
      return [openLanguageModel(checkpoint, { ...use, ...shared })];
    } catch (error) {
      if (!(error instanceof BudgetTooSmallError)) throw error;
      refused.push(error);
      return [];
    }
  });
  const worst = refused.sort((a, b) => b.smallestBytes - a.smallestBytes)[0];
  if (worst) throw inWhole(worst, wholeBytes, wholeOf);
  return models;
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
  const models = openWithin(maxMemory, (part) => processBytes + uses.length * part, uses, { runner, bytes, signal });
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
