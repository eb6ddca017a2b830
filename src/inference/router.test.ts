import { describe, expect, test } from 'vitest';
import { expected } from '../../fixtures/inference.js';
import { largest, type RouterRule, route } from './router.js';

const groups = { count: 4, kept: 2 };
const RULES: Record<keyof typeof expected.routers, RouterRule> = {
  deepseek_v3: {
    expertsPerToken: 4,
    score: 'sigmoid',
    groups: { ...groups, top: 2 },
    normalised: true,
    scale: 2.5,
  },
  deepseek_v2: { expertsPerToken: 4, score: 'softmax', groups: { ...groups, top: 1 }, normalised: false, scale: 4 },
  deepseek_v2_greedy: { expertsPerToken: 4, score: 'softmax', normalised: false, scale: 1 },
};

describe("chooses and weighs as transformers' routers do:", () => {
  test.each(Object.keys(RULES) as Array<keyof typeof RULES>)('%s', (name) => {
    const { logits, bias, experts, weights } = expected.routers[name];
    const routing = route(RULES[name], Float32Array.from(logits.flat()), 16, bias && Float32Array.from(bias));
    for (const [t, chosen] of experts.entries()) {
      const own = Array.from(chosen, (_, i) => [routing.experts[t * 4 + i], routing.weights[t * 4 + i]] as const);
      own.sort(([a = 0], [b = 0]) => a - b);
      expect(own.map(([expert]) => expert)).toEqual(chosen);
      for (const [i, [, weight]] of own.entries()) expect(weight).toBeCloseTo(weights[t]?.[i] as number, 6);
    }
  });
});

test('weights that are normalised add up to 1, whatever the logits', () => {
  const rule: RouterRule = { expertsPerToken: 2, score: 'softmax', normalised: true, scale: 1 };
  const { experts, weights } = route(rule, Float32Array.of(1000, -1000, 999, 0), 4);
  expect([...experts]).toEqual([0, 2]);
  expect((weights[0] as number) + (weights[1] as number)).toBeCloseTo(1, 6);
});

test('of equal values the first is the largest', () => {
  expect(largest(Float32Array.of(1, 3, 3, 2, 3), 2)).toEqual([1, 2]);
});
