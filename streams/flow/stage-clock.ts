/**
 * Where the time of a pipeline goes: each stage is at any moment working, starved (it waits for what comes before it) or
 * blocked (it waits for what comes after it). A stage that is measured costs a clock reading at each record.
 */
import { setTimeout } from 'node:timers/promises';

export interface StageTimes {
  readonly stage: string;
  /** Milliseconds since the first stage began. */
  readonly working: number;
  readonly starved: number;
  readonly blocked: number;
  /** That went through it. */
  readonly bytes: number;
}

/** Makes a stage take `factor` times as long as it does: how a test tells that the slowest is found. */
export interface Slowdown {
  readonly stage: string;
  readonly factor: number;
}

export interface StageClocks {
  /** What makes records: it works while one is asked for, and is blocked until the next one is. */
  source<T>(stage: string, input: AsyncIterable<T>, bytes: (record: T) => number): AsyncIterable<T>;
  /** What makes records of others: it is starved while it waits for one of those. */
  transform<I, O>(
    stage: string,
    input: AsyncIterable<I>,
    bytes: (record: I) => number,
    through: (input: AsyncIterable<I>) => AsyncIterable<O>,
  ): AsyncIterable<O>;
  /** A piece of work, beside others of its stage perhaps. While there is none the stage is starved. */
  work<T>(stage: string, bytes: number, task: () => Promise<T>): Promise<T>;
  /** More bytes are held by all the stages together, or fewer. */
  held(bytes: number): void;
  readonly peakHeldBytes: number;
  /** In the order in which stages began. */
  times(): StageTimes[];
}

type State = Exclude<keyof StageTimes, 'stage' | 'bytes'>;

interface Clock {
  state: State;
  since: number;
  readonly spent: Record<State, number>;
  bytes: number;
  /** Pieces of work under way. */
  tasks: number;
}

/** @param slow a stage that is made slower, for tests */
export function createStageClocks(slow?: Slowdown): StageClocks {
  const clocks = new Map<string, Clock>();
  let began: number | undefined;
  let held = 0;
  let peakHeldBytes = 0;

  const clockOf = (stage: string): Clock => {
    let clock = clocks.get(stage);
    if (!clock) {
      const now = performance.now();
      began ??= now;
      // Until it begins a stage has nothing to do.
      clock = { state: 'starved', since: began, spent: { working: 0, starved: 0, blocked: 0 }, bytes: 0, tasks: 0 };
      clocks.set(stage, clock);
    }
    return clock;
  };
  const enter = (clock: Clock, state: State): void => {
    const now = performance.now();
    clock.spent[clock.state] += now - clock.since;
    clock.since = now;
    clock.state = state;
  };
  /** Time that a slowed stage owes; timers are too coarse to pay for each record. */
  let owed = 0;
  const drag = async (stage: string, began: number): Promise<void> => {
    if (slow?.stage !== stage) return;
    owed += (slow.factor - 1) * (performance.now() - began);
    if (owed < LEAST_PAUSE_MS) return;
    const paused = performance.now();
    await setTimeout(owed);
    owed -= performance.now() - paused;
  };

  return {
    async *source(stage, input, bytes) {
      const clock = clockOf(stage);
      const records = input[Symbol.asyncIterator]();
      try {
        for (;;) {
          enter(clock, 'working');
          const asked = performance.now();
          const { value, done } = await records.next();
          if (done) return;
          await drag(stage, asked);
          clock.bytes += bytes(value);
          enter(clock, 'blocked');
          yield value;
        }
      } finally {
        enter(clock, 'starved'); // nothing is left to do
        await records.return?.();
      }
    },
    async *transform(stage, input, bytes, through) {
      const clock = clockOf(stage);
      // Of the record in hand: how long it was worked on before the record it led to was passed on, and since when again.
      let worked = 0;
      let since = 0;
      const counted = async function* () {
        const records = input[Symbol.asyncIterator]();
        try {
          for (;;) {
            enter(clock, 'starved');
            const { value, done } = await records.next();
            enter(clock, 'working');
            if (done) return;
            clock.bytes += bytes(value);
            since = performance.now();
            yield value;
            await drag(stage, since - worked);
            worked = 0;
          }
        } finally {
          await records.return?.();
        }
      };
      try {
        for await (const record of through(counted())) {
          worked += performance.now() - since;
          enter(clock, 'blocked');
          yield record;
          enter(clock, 'working');
          since = performance.now();
        }
      } finally {
        enter(clock, 'starved');
      }
    },
    async work(stage, bytes, task) {
      const clock = clockOf(stage);
      if (clock.tasks++ === 0) enter(clock, 'working');
      const started = performance.now();
      try {
        const result = await task();
        await drag(stage, started);
        clock.bytes += bytes;
        return result;
      } finally {
        if (--clock.tasks === 0) enter(clock, 'starved');
      }
    },
    held(bytes) {
      held += bytes;
      peakHeldBytes = Math.max(peakHeldBytes, held);
    },
    get peakHeldBytes() {
      return peakHeldBytes;
    },
    times() {
      return [...clocks].map(([stage, clock]) => {
        enter(clock, clock.state); // what it has spent in its present state counts too
        return { stage, ...clock.spent, bytes: clock.bytes };
      });
    },
  };
}

/** A timer's resolution. */
const LEAST_PAUSE_MS = 2;

/** The stage that was at work for most of the time: the others wait for it. */
export const bottleneck = (times: readonly StageTimes[]): StageTimes | undefined =>
  times.reduce<StageTimes | undefined>((top, it) => (top && top.working >= it.working ? top : it), undefined);
