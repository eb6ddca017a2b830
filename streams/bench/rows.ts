/** Turns samples into rows: medians, spreads, ratios, and the stage that limits a pipeline. */
import { bottleneck, type StageTimes } from '../flow/stage-clock.js';
import type { Sample } from './sample.js';
import { OURS, SHA256, type Way } from './ways.js';

/** The samples of a way, one for each round. */
export interface Measured extends Omit<Way, 'task'> {
  readonly samples: readonly Sample[];
}

/** A line of the report: one way with its figures. */
export interface Row extends Omit<Measured, 'samples'> {
  /** GB of the source a second. */
  readonly rate: Spread;
  readonly cpuSecondsPerGigabyte: number;
  /** The largest peak of all rounds. */
  readonly peakRssBytes: number;
  readonly heldBytes?: number;
  readonly loopP99Ms?: number;
  /** Rate divided by that of the way `against`. Each round has its own ratio, because both ran in the same minute. */
  readonly ratio?: Spread;
  /** How each stage spent its time, in the round with the median rate. */
  readonly stages?: readonly StageShare[];
  /** The limiting stage, e.g. "write-bound: write 1.1 of 1.2 GB/s". */
  readonly limit?: string;
}

/** Median and extremes of all rounds. */
export interface Spread {
  readonly median: number;
  readonly low: number;
  readonly high: number;
}

/** A stage's time, as shares that sum to 1. */
export interface StageShare {
  readonly stage: string;
  readonly working: number;
  readonly starved: number;
  readonly blocked: number;
  /** GB/s through the stage, over the whole time. */
  readonly rate: number;
}

/** Median and extremes of at least one value. */
export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  const median = ((sorted[Math.ceil(middle) - 1] as number) + (sorted[Math.floor(middle)] as number)) / 2;
  return { median, low: sorted[0] as number, high: sorted.at(-1) as number };
}

/** A sample's rate. */
export const gigabytesPerSecond = ({ bytes, seconds }: Sample): number => bytes / 1e9 / seconds;

/** Makes the rows of a report. */
export function makeRows(measured: readonly Measured[]): Row[] {
  const plain = measured.map((it) => makeRow(it, measured));
  return plain.map((row) => {
    const limit = row.stages && describeLimit(row, row.stages, plain);
    return limit ? { ...row, limit } : row;
  });
}

function makeRow({ samples, ...way }: Measured, all: readonly Measured[]): Row {
  const most = (values: ReadonlyArray<number | undefined>): number | undefined => {
    const known = values.filter((value) => value !== undefined);
    return known.length ? Math.max(...known) : undefined;
  };
  const rates = samples.map(gigabytesPerSecond);
  const other = all.find((it) => it.stage === way.stage && it.cache === way.cache && it.way === way.against);
  const heldBytes = most(samples.map((it) => it.heldBytes));
  const loopP99Ms = most(samples.map((it) => it.loopP99Ms));
  const stages = middleOf(samples).stages;
  return {
    ...way,
    rate: spread(rates),
    cpuSecondsPerGigabyte: spread(samples.map(({ cpuSeconds, bytes }) => (1e9 * cpuSeconds) / bytes)).median,
    peakRssBytes: Math.max(...samples.map(({ peakRssBytes }) => peakRssBytes)),
    ...(heldBytes !== undefined && { heldBytes }),
    ...(loopP99Ms !== undefined && { loopP99Ms }),
    ...(other && {
      ratio: spread(rates.map((rate, round) => rate / gigabytesPerSecond(other.samples[round] as Sample))),
    }),
    ...(stages && { stages: stages.map(shareOf) }),
  };
}

/** The sample with the median rate. */
const middleOf = (samples: readonly Sample[]): Sample =>
  [...samples].sort((a, b) => gigabytesPerSecond(a) - gigabytesPerSecond(b))[samples.length >> 1] as Sample;

function shareOf({ stage, working, starved, blocked, bytes }: StageTimes): StageShare {
  const total = working + starved + blocked || 1;
  return {
    stage,
    working: working / total,
    starved: starved / total,
    blocked: blocked / total,
    rate: bytes / 1e6 / total,
  };
}

/** For each stage of a pipeline, the row that measures it alone, and the resource that it uses. */
const ALONE: Readonly<Record<string, { stage: Way['stage']; way: string; resource: string }>> = {
  read: { stage: 'read', way: OURS, resource: 'read' },
  'read experts': { stage: 'read', way: OURS, resource: 'read' },
  hash: { stage: 'compute', way: SHA256, resource: 'processor' },
  write: { stage: 'write', way: OURS, resource: 'disk' },
};

/** Names the stage that worked most of the time, with its rate in the pipeline and alone. */
function describeLimit({ cache }: Row, stages: readonly StageShare[], rows: readonly Row[]): string | undefined {
  const top = bottleneck(stages.map((stage) => ({ ...stage, bytes: 0 })));
  if (!top) return undefined;
  const { stage, rate } = stages.find((it) => it.stage === top.stage) as StageShare;
  const known = ALONE[stage];
  const alone = rows.find(
    (row) => row.stage === known?.stage && row.way === known.way && (row.cache === cache || row.cache === 'memory'),
  );
  const resource = stage === 'read' && cache === 'cold' ? 'disk' : (known?.resource ?? 'processor');
  const share = `at work ${(100 * top.working).toFixed(0)} % of the time`;
  const rates = alone ? `${rate.toFixed(2)} of ${alone.rate.median.toFixed(2)} GB/s` : `${rate.toFixed(3)} GB/s`;
  return `${resource}-bound: ${stage} ${rates}, ${share}`;
}
