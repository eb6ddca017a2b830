import { describe, expect, test } from 'vitest';
import { Schedule } from './schedule.js';

/** Runs a schedule over a curve of losses and returns the rates of each step. */
function run(steps: number, loss: (step: number) => number): Array<Schedule['rates']> {
  const schedule = new Schedule(steps, 'silu');
  const rates = [];
  while (!schedule.finished) {
    rates.push(schedule.rates);
    expect(schedule.expectedSteps).toBeLessThanOrEqual(steps);
    schedule.advance(loss(rates.length));
  }
  return rates;
}

describe('the schedule of a run', () => {
  test('takes all planned steps while the loss falls', () => {
    for (const steps of [1, 2, 7, 100, 600]) expect(run(steps, (step) => 1 / step)).toHaveLength(steps);
  });

  test('steps shrink towards 0 and momentum grows, to the end', () => {
    const rates = run(200, (step) => 1 / step);
    for (const [i, { decay, momentum }] of rates.entries()) {
      const before = rates[i - 1];
      if (before) expect(decay).toBeLessThan(before.decay);
      if (before) expect(momentum).toBeGreaterThan(before.momentum);
    }
    expect(rates[0]?.decay).toBe(1);
    expect(rates.at(-1)?.decay).toBeLessThan(0.05);
  });

  test('ends early once the loss has stopped falling, with its steps shrunk all the same', () => {
    const rates = run(3000, (step) => Math.max(0.1, 1 / step));
    expect(rates.length).toBeLessThan(600);
    expect(rates.at(-1)?.decay).toBeLessThan(0.15);
  });

  test('a loss that rises and falls but gets nowhere counts as still', () => {
    expect(run(3000, (step) => 0.1 + 0.01 * (step % 3)).length).toBeLessThan(600);
  });

  test('says how many steps it will be: the plan, then fewer', () => {
    const schedule = new Schedule(1000, 'tanh');
    expect(schedule.expectedSteps).toBe(1000);
    for (let step = 0; step < 110; step++) schedule.advance(0.1);
    const expected = schedule.expectedSteps;
    expect(expected).toBeLessThan(300);
    let done = 110;
    for (; !schedule.finished; done++) schedule.advance(0.1);
    expect(done).toBe(expected);
  });
});
