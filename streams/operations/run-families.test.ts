/**
 * Runs all architectures on tiny generated models. fixtures/interop/check_inference.py compares such models with transformers.
 */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import type { FamilyName } from '../../fixtures/families.js';
import { type FamilyOptions, generateFamily } from '../../fixtures/generate-family.js';
import { largestDifference, lastStates, openModel } from '../../fixtures/inference.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { thoroughBut } from '../../fixtures/thorough.js';
import { createEngine } from '../../src/engine/create-engine.js';
import type { ModelOptions } from '../../src/inference/language-model.js';
import { compress } from './compress.js';
import { expand } from './expand.js';

const root = temporaryFolder();
const engine = await createEngine('onnx-cpu', { threads: 1 });
const TOKENS = Array.from({ length: 20 }, (_, i) => (7 + i * 11) % 64);

const common = { max_position_embeddings: 64, rms_norm_eps: 1e-6 };
const groups = { n_group: 4, topk_group: 2, routed_scaling_factor: 2.5 };
const FAMILIES: Array<[string, FamilyName, FamilyOptions]> = [
  ['Qwen3-MoE', 'qwen3_moe', {}],
  ['DeepSeek-V2', 'deepseek_v2', { config: { ...groups, topk_method: 'group_limited_greedy' } }],
  ['DeepSeek-V3 in FP8', 'deepseek_v3', { config: groups, quantised: 'fp8' }],
  ['Kimi-K2', 'kimi_k2', { config: { ...groups, n_group: 1, topk_group: 1 } }],
  ['Ling, with a normalised head', 'bailing_moe', { config: { head_dim: 8, norm_head: true, use_bias: false } }],
  [
    'Ling 2, half of each head rotated',
    'bailing_moe_v2',
    { config: { ...groups, head_dim: 8, partial_rotary_factor: 0.5 } },
  ],
];

/** The logits of all tokens, computed at once or in pieces with a key-value cache. */
async function logitsOf(folder: string, pieces: number[][] = [TOKENS], options: Partial<ModelOptions> = {}) {
  const model = await openModel(folder, engine, options);
  const sequence = model.newSequence();
  const logits: number[] = [];
  for (const tokens of pieces) logits.push(...(await model.logits(await lastStates(model, [{ sequence, tokens }]))));
  await model.close();
  return logits;
}

/** The largest difference, relative to the largest logit. */
const relativeDifference = (a: number[], b: number[]): number => largestDifference(a, b) / Math.max(...b.map(Math.abs));

const cost = thoroughBut('Qwen3-MoE', 'DeepSeek-V3 in FP8', 'Ling, with a normalised head');

for (const [name, family, options] of FAMILIES)
  describe(name, cost(name), () => {
    const at = (part: string) => join(root, name, part);

    test('token by token it says what it says at once, and natively what it says expanded', async () => {
      await generateFamily(at('source'), family, { ...options, config: { ...common, ...options.config } });
      const whole = await logitsOf(at('source'));
      expect(whole).toHaveLength(20 * 64);
      expect(new Set(whole).size).toBeGreaterThan(1000);
      const pieces = [TOKENS.slice(0, 7), ...TOKENS.slice(7, 12).map((token) => [token]), TOKENS.slice(12)];
      expect(relativeDifference(await logitsOf(at('source'), pieces), whole)).toBeLessThan(1e-5);

      const factors = { bases: 3, steps: 3, threads: 1, dtype: 'float32' } as const;
      await compress(at('source'), at('native'), factors, LARGER);
      await expand(at('native'), at('expanded'), { threads: 1 });
      const native = await logitsOf(at('native'));
      expect(relativeDifference(native, await logitsOf(at('expanded')))).toBeLessThan(1e-5);
      expect(relativeDifference(native, whole)).toBeGreaterThan(1e-4);
      const one = await logitsOf(at('native'), undefined, { expertsPerToken: 1 });
      expect(relativeDifference(one, native)).toBeGreaterThan(1e-4);
    });
  });
