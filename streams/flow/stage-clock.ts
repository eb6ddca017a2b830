/**
 * Measures how the stages of a pipeline spend their time. At any moment a stage is working, starved (it waits for the stage before
 * it) or blocked (it waits for the stage after it). The cost is a few clock readings for each record.
 */
import { setTimeout } from 'node:timers/promises';

/** How one stage spent its time. */
export interface StageTimes {
  readonly stage: string;
  /** Milliseconds since the first stage began. */
  readonly working: number;
  readonly starved: number;
  readonly blocked: number;
  /** Bytes that went through the stage. */
  readonly bytes: number;
}

/** Makes a stage take `factor` times as long. Tests use it to check that the slowest stage is found. */
export interface Slowdown {
  readonly stage: string;
  readonly factor: number;
}

/** The clocks of one pipeline. */
export interface StageClocks {
  /** Measures a stage that makes records. It works while a record is requested, and is blocked until the next request. */
  source<T>(stage: string, input: AsyncIterable<T>, bytes: (record: T) => number): AsyncIterable<T>;
  /** Measures a stage that turns records into others. It is starved while it waits for an input record. */
  transform<I, O>(
    stage: string,
    input: AsyncIterable<I>,
    bytes: (record: I) => number,
    through: (input: AsyncIterable<I>) => AsyncIterable<O>,
  ): AsyncIterable<O>;
  /** Measures one task of a stage. A stage may run several at once, and is starved while it runs none. */
  work<T>(stage: string, bytes: number, task: () => Promise<T>): Promise<T>;
  /** Adds to the bytes that all stages hold together; negative if fewer are held. */
  held(bytes: number): void;
  readonly peakHeldBytes: number;
  /** The times of all stages, in the order in which they began. */
  times(): StageTimes[];
}

type State = Exclude<keyof StageTimes, 'stage' | 'bytes'>;

interface Clock {
  state: State;
  since: number;
  readonly spent: Record<State, number>;
  bytes: number;
  /** Number of running tasks. */
  tasks: number;
}

/** Starts the clocks of a pipeline. */
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
      // A stage is starved until it begins.
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
  /** Delay that a slowed stage still owes. Timers are too coarse to pause at each record. */
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
        enter(clock, 'starved'); // the stage has ended
        await records.return?.();
      }
    },
    async *transform(stage, input, bytes, through) {
      const clock = clockOf(stage);
      // For the current input record: the time worked before its last output was passed on, and the start of the work since then.
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
        enter(clock, clock.state); // counts the time in the present state
        return { stage, ...clock.spent, bytes: clock.bytes };
      });
    },
  };
}

/** Shortest pause: the resolution of a timer, in milliseconds. */
const LEAST_PAUSE_MS = 2;

/** The stage that worked most of the time: the others wait for it. Undefined without stages. */
export const bottleneck = (times: readonly StageTimes[]): StageTimes | undefined =>
  times.reduce<StageTimes | undefined>((top, it) => (top && top.working >= it.working ? top : it), undefined);
