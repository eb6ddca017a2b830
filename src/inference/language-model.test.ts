import { afterAll, describe, expect, test } from 'vitest';
import { testedEngines } from '../../fixtures/engines.js';
import { largestDifference, lastStates, nextLogits, openModel, reference } from '../../fixtures/inference.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { createEngine } from '../engine/create-engine.js';
import { BudgetTooSmallError, InterruptedError, OptionError, TokenRangeError } from '../errors.js';
import { mostLikely } from './sample.js';

const engine = await createEngine('onnx-cpu', { threads: 1 });
const model = await openModel(TINY_MODEL, engine);
afterAll(() => model.close());

const PROMPT = reference.prompts[0]?.prompt_ids as number[];
/** The trained fixture's logits reach 30, and sums in f32 depend on their order. */
const F32 = 1e-4;

describe.each(reference.prompts.map((it) => [it.prompt, it] as const))('the prompt %j', (_, it) => {
  test("has the reference's logits after its last token", async () => {
    const logits = await nextLogits(model, { sequence: model.newSequence(), tokens: it.prompt_ids });
    expect(largestDifference(logits, it.last_position_logits)).toBeLessThan(1e-3);
  });

  test('continues as the reference does, wherever its choice has a margin', async () => {
    const sequence = model.newSequence();
    let tokens = it.prompt_ids;
    let compared = 0;
    for (const [i, choice] of it.greedy_ids.entries()) {
      const chosen = mostLikely(await nextLogits(model, { sequence, tokens }));
      if ((it.greedy_top1_minus_top2_logit[i] as number) > 2e-3) {
        expect(chosen, `token ${i}`).toBe(choice);
        compared++;
      }
      tokens = [choice];
    }
    expect(compared).toBeGreaterThan(50);
  });
});

describe.each((await testedEngines()).map((it) => [it.name, it] as const))('on %s', (_, other) => {
  test("a prompt and a token after it have onnx-cpu's logits", async () => {
    const own = await openModel(TINY_MODEL, other);
    const [mine, its] = [own.newSequence(), model.newSequence()];
    for (const tokens of [PROMPT, [65]]) {
      const actual = await nextLogits(own, { sequence: mine, tokens });
      expect(largestDifference(actual, await nextLogits(model, { sequence: its, tokens }))).toBeLessThan(1e-3);
    }
    await own.close();
  });
});

test('a prompt in pieces is the prompt as a whole', async () => {
  const whole = await nextLogits(model, { sequence: model.newSequence(), tokens: PROMPT });
  const sequence = model.newSequence();
  await lastStates(model, [{ sequence, tokens: PROMPT.slice(0, 9) }]);
  await lastStates(model, [{ sequence, tokens: PROMPT.slice(9, 10) }]);
  const pieces = await nextLogits(model, { sequence, tokens: PROMPT.slice(10) });
  expect(sequence.length).toBe(PROMPT.length);
  expect(largestDifference(pieces, whole)).toBeLessThan(F32);
});

test('the key-value cache grows beyond its first room', async () => {
  const tokens = Array.from({ length: 150 }, (_, i) => 97 + (i % 26));
  const sequence = model.newSequence();
  for (const first of [0, 50, 100]) await lastStates(model, [{ sequence, tokens: tokens.slice(first, first + 50) }]);
  const whole = await nextLogits(model, { sequence: model.newSequence(), tokens: [...tokens, 10] });
  expect(largestDifference(await nextLogits(model, { sequence, tokens: [10] }), whole)).toBeLessThan(F32);
});

test('sequences side by side do not see each other', async () => {
  const texts = [PROMPT, [105, 109, 112, 111, 114, 116], PROMPT.slice(3, 12)];
  const together = await lastStates(
    model,
    texts.map((tokens) => ({ sequence: model.newSequence(), tokens })),
  );
  let row = 0;
  for (const tokens of texts) {
    const alone = await lastStates(model, [{ sequence: model.newSequence(), tokens }]);
    const own = together.subarray(row * model.width, (row + tokens.length) * model.width);
    expect(largestDifference(own, alone)).toBeLessThan(F32);
    row += tokens.length;
  }
});

describe('the budget', () => {
  const usage = { keptTokens: 64, batchTokens: 64 };
  /** The smallest budget, from the error message. */
  const smallest = async (): Promise<number> => {
    const error = await openModel(TINY_MODEL, engine, { ...usage, bytes: 1000 }).catch((it) => it);
    expect(error).toBeInstanceOf(BudgetTooSmallError);
    return (error as BudgetTooSmallError).smallestBytes;
  };

  test('too small for one layer and one expert is refused, with one that is not', async () => {
    const bytes = await smallest();
    const tight = await openModel(TINY_MODEL, engine, { ...usage, bytes });
    expect(tight.memory.weightBytes).toBeLessThan(tight.memory.wholeBytes / 8);
    await tight.close();
  });

  test('a tight one changes how often weights are read, and nothing else', async () => {
    const tight = await openModel(TINY_MODEL, engine, {
      ...usage,
      bytes: await smallest(),
    });
    const roomy = await openModel(TINY_MODEL, engine, usage);
    for (const it of [tight, roomy]) {
      const sequence = it.newSequence();
      await nextLogits(it, { sequence, tokens: PROMPT });
      const logits = await nextLogits(it, { sequence, tokens: [120] });
      const its = model.newSequence();
      await nextLogits(model, { sequence: its, tokens: PROMPT });
      expect(logits).toEqual(await nextLogits(model, { sequence: its, tokens: [120] }));
    }
    expect(tight.usage().bytesRead).toBeGreaterThan(roomy.usage().bytesRead);
    await tight.close();
    await roomy.close();
  });

  test('experts that no token goes to are not read', async () => {
    const fresh = await openModel(TINY_MODEL, engine);
    await nextLogits(fresh, { sequence: fresh.newSequence(), tokens: [100] });
    // Each of 4 layers reads 4 experts, attention and router. The head and its norm are read too.
    expect(fresh.usage().misses).toBe(4 * (4 + 2) + 2);
    await fresh.close();
  });
});

test('fewer experts a token give other logits; as many as the config says the same', async () => {
  const [two, four] = [
    await openModel(TINY_MODEL, engine, { expertsPerToken: 2 }),
    await openModel(TINY_MODEL, engine, { expertsPerToken: 4 }),
  ];
  const logits = [];
  for (const it of [model, two, four])
    logits.push(await nextLogits(it, { sequence: it.newSequence(), tokens: PROMPT }));
  expect(logits[2]).toEqual(logits[0]);
  expect(largestDifference(logits[1] as Float32Array, logits[0] as Float32Array)).toBeGreaterThan(0.1);
  await two.close();
  await four.close();
});

test('more experts a token than there are is an error', async () => {
  await expect(openModel(TINY_MODEL, engine, { expertsPerToken: 33 })).rejects.toThrow(OptionError);
});

test('a token beyond the vocabulary is an error', async () => {
  await expect(lastStates(model, [{ sequence: model.newSequence(), tokens: [264] }])).rejects.toThrow(TokenRangeError);
});

test('an aborted run ends before the next layer', async () => {
  const controller = new AbortController();
  const own = await openModel(TINY_MODEL, engine, { signal: controller.signal });
  const run = own.forward([{ sequence: own.newSequence(), tokens: PROMPT }]);
  await run.next();
  controller.abort();
  await expect(run.next()).rejects.toThrow(InterruptedError);
  await own.close();
});
