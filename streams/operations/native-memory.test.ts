/** Memory of running native checkpoints, compared with that of the same model expanded. */
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { nextLogits, openModel, reference } from '../../fixtures/inference.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { createEngine } from '../../src/engine/create-engine.js';
import { BudgetTooSmallError } from '../../src/errors.js';
import { compress } from './compress.js';
import { expand } from './expand.js';

const work = temporaryFolder();
const FORMS = ['native', 'int8', 'int5', 'expanded'] as const;
type Form = (typeof FORMS)[number];
const at = (form: Form): string => join(work, form);
const engine = await createEngine('onnx-cpu', { threads: 1 });
const USAGE = { keptTokens: 128, batchTokens: 64 };
const PROMPT = reference.prompts[0]?.prompt_ids as number[];

beforeAll(async () => {
  const settings = { bases: 8, steps: 3, threads: 1 };
  await compress(TINY_MODEL, at('native'), settings);
  await compress(TINY_MODEL, at('int8'), { ...settings, dtype: 'int8' });
  await compress(TINY_MODEL, at('int5'), { ...settings, dtype: 'int5' });
  await expand(at('native'), at('expanded'), {});
}, 120_000);

const open = (form: Form, bytes?: number) => openModel(at(form), engine, { ...USAGE, ...(bytes && { bytes }) });

/** The smallest budget, from the error message. */
async function smallest(form: Form): Promise<number> {
  const error = await open(form, 1000).catch((it) => it);
  expect(error).toBeInstanceOf(BudgetTooSmallError);
  return (error as BudgetTooSmallError).smallestBytes;
}

const memoryOf = async (form: Form) => {
  const model = await open(form);
  await model.close();
  return model.memory;
};

describe.each(FORMS)('%s', (form) => {
  test('the budget changes how often weights are read and made, and no bit of the results', async () => {
    const { readOnceBytes } = await memoryOf(form);
    const logits = [];
    for (const bytes of [await smallest(form), readOnceBytes, 2 ** 30]) {
      const model = await open(form, bytes);
      const sequence = model.newSequence();
      logits.push([
        await nextLogits(model, { sequence, tokens: PROMPT }),
        await nextLogits(model, { sequence, tokens: [120] }),
      ]);
      await model.close();
    }
    expect(logits[1]).toEqual(logits[0]);
    expect(logits[2]).toEqual(logits[0]);
  });

  test('within the budget that is said to be enough, weights are read once', async () => {
    const { readOnceBytes } = await memoryOf(form);
    const read = [];
    for (const bytes of [readOnceBytes, await smallest(form)]) {
      const model = await open(form, bytes);
      const pass = () => nextLogits(model, { sequence: model.newSequence(), tokens: PROMPT });
      await pass();
      const before = model.usage().bytesRead;
      await pass();
      read.push(model.usage().bytesRead - before);
      await model.close();
    }
    // The rows of the embedding are read for each token, as bf16.
    expect(read[0]).toBe(PROMPT.length * 2 * (await open(form)).width);
    expect(read[1]).toBeGreaterThan(read[0] as number);
  });
});

test('a native checkpoint needs no more memory than the expanded model, and a quantised one less', async () => {
  const expanded = await memoryOf('expanded');
  for (const form of ['native', 'int8', 'int5'] as const) {
    const memory = await memoryOf(form);
    expect(memory.readOnceBytes).toBeLessThan(expanded.readOnceBytes);
  }
  const [native, int8, int5] = await Promise.all((['native', 'int8', 'int5'] as const).map(memoryOf));
  expect(int8?.readOnceBytes).toBeLessThan(native?.readOnceBytes as number);
  expect(int5?.readOnceBytes).toBeLessThan(int8?.readOnceBytes as number);
});
