import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { PUBLISHED_SHAPES } from '../../../fixtures/published-shapes.js';
import { MobeError, NotSmallerError, OptionError } from '../../errors.js';
import type { GroupShape, MethodOptions, ProjectionShape } from '../method.js';
import { denseParameters } from '../parameters.js';
import { factorParameters, type Problem } from './problem.js';
import { completeOptions, defaultSizes, planSizes } from './sizes.js';

/** The projections of a layer. By default gate and up are factorised, and down is not. */
const layer = (shape: GroupShape, factorised = [true, true, false]): ProjectionShape[] =>
  factorised.map((it, i) => ({
    ...shape,
    factorised: it,
    example: { name: `experts.0.${['gate', 'up', 'down'][i]}_proj.weight`, rows: shape.rows, cols: shape.cols },
  }));

const plan = (projections: readonly ProjectionShape[], options: MethodOptions = {}): Problem[] =>
  planSizes(projections, completeOptions(options));
const note = (projections: readonly ProjectionShape[], options: MethodOptions = {}) =>
  defaultSizes(projections, completeOptions(options));

/** The share of all parameters that remain. */
function kept(projections: readonly ProjectionShape[], problems: readonly Problem[], groups = 1): number {
  const sum = (numbers: number[]): number => numbers.reduce((total, it) => total + it, 0);
  const dense = projections.filter(({ factorised }) => !factorised).map(denseParameters);
  return (sum(dense) + groups * sum(problems.map(factorParameters))) / sum(projections.map(denseParameters));
}

describe('the default for published models:', () => {
  const TODAY: Record<string, number> = {
    'Qwen3-30B-A3B': 33,
    'Qwen3-235B-A22B': 33,
    'DeepSeek-V3': 90,
    'Kimi-K2': 136,
    'Ling-plus': 4,
  };
  const PAPER = ['Ling-lite', 'DeepSeek-V2-Lite', 'Moonlight-16B-A3B'];

  test.each(PUBLISHED_SHAPES)('$model', ({ model, ...shape }) => {
    const projections = layer(shape);
    const problems = plan(projections);
    const [gate, up] = problems as [Problem, Problem];
    const { rank, bases } = gate;
    const share = kept(projections, problems);
    const full = Math.min(shape.rows, shape.cols);
    expect(up).toEqual(gate);
    expect(problems.every((it) => factorParameters(it) < denseParameters(it))).toBe(true);
    if (model in TODAY) {
      expect({ rank, bases }).toEqual({ rank: full, bases: TODAY[model] });
      expect(note(projections)).toBeUndefined();
    } else if (PAPER.includes(model)) {
      expect({ rank, bases }).toEqual({ rank: 1408, bases: 4 });
      expect(note(projections)?.note).toContain("the paper's sizes");
      expect(share).toBeCloseTo(5 / 6, 2);
    } else {
      expect(rank % 16).toBe(0);
      expect(rank).toBeLessThan(full);
      expect(bases / shape.experts).toBeGreaterThan(0.15);
      expect(bases / shape.experts).toBeLessThan(0.3);
      expect(share).toBeLessThanOrEqual(0.76);
      expect(share).toBeGreaterThan(0.75);
      expect(note(projections)?.options).toEqual({ bases, rank, keep: undefined });
    }
  });
});

describe('the default', () => {
  const size = (most: number) => fc.integer({ min: 1, max: most });
  const options = fc.record({ groups: fc.constantFrom(1, 2, 4), down: fc.boolean() });

  test('makes any experts smaller, or says that nothing can', () => {
    fc.assert(
      fc.property(size(40), size(200), size(200), options, (perGroup, rows, cols, { groups, down }) => {
        const projections = layer({ experts: perGroup * groups, rows, cols }, [true, true, down]);
        const smallest = { experts: perGroup, rows, cols, bases: 1, rank: 1 };
        const possible = factorParameters(smallest) < perGroup * rows * cols;
        if (!possible) {
          expect(() => plan(projections, { groups })).toThrow(/Even one basis of rank 1/);
          return;
        }
        for (const problem of plan(projections, { groups })) {
          expect(factorParameters(problem)).toBeLessThan(denseParameters(problem));
          expect(problem.rank).toBeLessThanOrEqual(Math.min(rows, cols));
        }
      }),
      { numRuns: 500 },
    );
  });

  test('keeps no more than the share, except where the smallest factors or the paper keep more', () => {
    fc.assert(
      fc.property(fc.integer({ min: 4, max: 300 }), size(3000), size(3000), (experts, rows, cols) => {
        fc.pre(rows >= 16 && cols >= 16 && experts !== 64);
        const projections = layer({ experts, rows, cols });
        expect(kept(projections, plan(projections))).toBeLessThanOrEqual(0.76);
      }),
    );
  });

  test('chooses by layer where layers differ', () => {
    const projections = [60, 8].flatMap((experts) => layer({ experts, rows: 1408, cols: 2048 }));
    const problems = plan(projections);
    expect(problems.map(({ experts, bases }) => [experts, bases])).toEqual([
      [60, problems[0]?.bases],
      [60, problems[0]?.bases],
      [8, 2],
      [8, 2],
    ]);
    expect(problems[0]?.bases).toBeGreaterThan(10);
    expect(note(projections)?.options).toEqual({});
    expect(note(projections)?.note).toContain("each layer's and projection's own");
  });

  test('the share that the note tells is that of the sizes', () => {
    const projections = layer({ experts: 60, rows: 1408, cols: 2048 });
    const share = (100 * kept(projections, plan(projections))).toFixed(1);
    expect(note(projections)?.note).toMatch(new RegExp(`where the least is 80\\.3 %: .*; they keep ${share} %$`));
  });

  test('the options of the note give the same sizes, and then there is no note', () => {
    const projections = layer({ experts: 32, rows: 96, cols: 96 });
    const options = { ...note(projections, { groups: 2 })?.options, groups: 2 };
    expect(plan(projections, options)).toEqual(plan(projections, { groups: 2 }));
    expect(note(projections, options)).toBeUndefined();
  });

  test('groups have their share of the bases', () => {
    const [{ experts, bases, rank }] = plan(layer({ experts: 64, rows: 1408, cols: 2048 }), { groups: 2 }) as [Problem];
    expect({ experts, bases, rank }).toEqual({ experts: 32, bases: 2, rank: 1408 });
  });
});

describe('every remedy that an error names works:', () => {
  /** The options that a message names, each as one way. */
  function remedies(message: string, given: MethodOptions): MethodOptions[] {
    const number = (text: string | undefined) => (text === undefined ? undefined : Number(text));
    const ways: MethodOptions[] = [];
    const keep = number(/Use --keep ([\d.]+)/.exec(message)?.[1]);
    const reaching = number(/--rank (\d+), which reaches/.exec(message)?.[1]);
    const bases = number(/at most --bases (\d+) at/.exec(message)?.[1]);
    const rank = number(/at most --rank (\d+) with/.exec(message)?.[1]);
    if (keep !== undefined) ways.push({ ...given, keep });
    if (reaching !== undefined) ways.push({ ...given, rank: reaching });
    if (bases !== undefined) ways.push({ ...given, keep: undefined, bases });
    if (rank !== undefined) ways.push({ ...given, rank });
    if (/leave out --bases, --rank and --keep/i.test(message)) ways.push({ groups: given.groups });
    return ways;
  }

  const failure = (projections: readonly ProjectionShape[], options: MethodOptions): MobeError | undefined => {
    try {
      plan(projections, options);
      return undefined;
    } catch (error) {
      expect(error).toBeInstanceOf(MobeError);
      return error as MobeError;
    }
  };

  test.each<[string, GroupShape, MethodOptions, new (...args: never[]) => Error, string[]]>([
    ['--keep', { experts: 64, rows: 1408, cols: 2048 }, { keep: 0.76 }, OptionError, ['0.803', '--rank 992']],
    ['--keep and --rank', { experts: 8, rows: 300, cols: 100 }, { keep: 0.4, rank: 90 }, OptionError, ['--rank 8']],
    [
      '--rank',
      { experts: 64, rows: 1408, cols: 2048 },
      { rank: 1408 },
      OptionError,
      ['the default of --keep', '--rank'],
    ],
    [
      '--bases',
      { experts: 8, rows: 300, cols: 100 },
      { bases: 4 },
      NotSmallerError,
      ['at most --rank 85 with --bases 4'],
    ],
    [
      '--bases and --rank',
      { experts: 16, rows: 44, cols: 64 },
      { bases: 40, rank: 40 },
      NotSmallerError,
      ['--bases 6'],
    ],
    ['groups', { experts: 16, rows: 44, cols: 64 }, { bases: 40, rank: 40, groups: 2 }, NotSmallerError, ['--bases 6']],
  ])('of %s', (_, shape, options, kind, texts) => {
    const projections = layer(shape);
    const error = failure(projections, options);
    expect(error).toBeInstanceOf(kind);
    for (const text of texts) expect(error?.message).toContain(text);
    const ways = remedies(error?.message ?? '', options);
    expect(ways.length).toBeGreaterThan(1);
    for (const way of ways) expect(failure(projections, way), JSON.stringify(way)).toBeUndefined();
  });

  test('of any shapes and options', () => {
    let followed = 0;
    const whole = fc.integer({ min: 1, max: 60 });
    const share = fc.integer({ min: 1, max: 99 }).map((it) => it / 100);
    const given = fc.record(
      { rank: whole, bases: whole, keep: share, groups: fc.constantFrom(1, 2) },
      { requiredKeys: ['groups'] },
    );
    const shape = fc.record({ experts: fc.integer({ min: 1, max: 20 }).map((it) => 2 * it), rows: whole, cols: whole });
    fc.assert(
      fc.property(fc.array(shape, { minLength: 1, maxLength: 2 }), given, (shapes, all) => {
        const options = { ...all, keep: all.bases === undefined ? all.keep : undefined };
        const projections = shapes.flatMap((it) => layer(it));
        const error = failure(projections, options);
        if (!error || /at most \d+$|equal parts/.test(error.message)) return;
        const ways = remedies(error.message, options);
        expect(ways.length + Number(error.message.includes('Even one basis'))).toBeGreaterThan(0);
        for (const way of ways) {
          const again = failure(projections, way);
          followed++;
          if (again) expect(again.message, JSON.stringify([error.message, way])).toContain('Even one basis of rank 1');
        }
      }),
      { numRuns: 1000 },
    );
    expect(followed).toBeGreaterThan(100);
  });

  test('all projections are named only if the share can then be kept', () => {
    const projections = layer({ experts: 32, rows: 64, cols: 192 });
    const message = failure(projections, { keep: 0.4 })?.message;
    expect(message).toContain('all --projections');
    expect(failure(layer({ experts: 32, rows: 64, cols: 192 }, [true, true, true]), { keep: 0.4 })).toBeUndefined();
    const small = failure(projections, { keep: 0.3 })?.message;
    const rank = Number(/all --projections at a rank of at most (\d+)/.exec(small ?? '')?.[1]);
    const whole = layer({ experts: 32, rows: 64, cols: 192 }, [true, true, true]);
    expect(failure(whole, { keep: 0.3, rank })).toBeUndefined();
    expect(failure(whole, { keep: 0.3, rank: rank + 1 })).toBeDefined();
  });
});
