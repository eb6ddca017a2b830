/**
 * The program on one screen: a conversion as a composition of stages. Highland composes them (flow/highland.ts), and each stage
 * has a file in stages/. `readExperts` takes the bytes of a group from a budget before it reads them, which bounds the memory.
 *
 *     read experts ─> group ─> normalise ─> weigh ─> factorise ─> fold ─> join ─┐
 *     read what is copied ──────────────────────────────────────────────────────┴─> write
 *
 * Without a calibration record, no group is weighed.
 */
import { pipeline } from 'node:stream/promises';
import type { ConversionPlan, Copy } from '../src/conversion/conversion-plan.js';
import { type GroupPlan, groupLabel } from '../src/conversion/group-plan.js';
import type { MemoryPlan } from '../src/conversion/memory-plan.js';
import { PASS_THROUGH_BLOCKS } from '../src/conversion/memory-terms.js';
import type { Output } from '../src/output/output.js';
import { type RangeReader, READ_BYTES } from '../src/sources/files.js';
import { BufferPool } from './flow/buffer-pool.js';
import { ByteBudget } from './flow/byte-budget.js';
import { compose, merge } from './flow/highland.js';
import { type OwnStage, runOwnStage } from './flow/own-stage.js';
import type { StageClocks } from './flow/stage-clock.js';
import type { NormalisedGroup, OutputRecord, WeighedGroup } from './records.js';
import { type FactoriseOptions, factorise } from './stages/factorise.js';
import { fold } from './stages/fold.js';
import { groupExperts } from './stages/group-experts.js';
import { type JoinOptions, joinSlices } from './stages/join-slices.js';
import { normalise } from './stages/normalise.js';
import { keepGroup, passThrough } from './stages/pass-through.js';
import { readExperts } from './stages/read-experts.js';
import { type WeighOptions, weigh } from './stages/weigh.js';
import { type WriteHooks, writeOutput } from './stages/write-output.js';

/** What the branch that factorises works with. */
export interface ExpertsOptions extends FactoriseOptions {
  /** The groups to fit. Groups that an interrupted run has finished are not among them. */
  readonly groups: readonly GroupPlan[];
  readonly plan: Pick<ConversionPlan, 'groups' | 'format' | 'separate'>;
  readonly memory: MemoryPlan;
  readonly reader: RangeReader;
  /** Gives each group the metric of its fit; undefined if fits have none. */
  readonly weighing?: Omit<WeighOptions, 'groups' | 'reader'> | undefined;
  /**
   * A stage of the caller, between normalising and fitting. It may drop groups; their weights are copied unchanged when the stage
   * has ended. Weights that share slices of a fused tensor with them wait in memory until then.
   */
  readonly ownStage?: OwnStage<NormalisedGroup> | undefined;
}

/** The branch that factorises: yields chunks of output tensors and a report for each group. Throws what the stages throw. */
export async function* compressExperts(options: ExpertsOptions): AsyncGenerator<OutputRecord> {
  const { groups, plan, memory, reader, runners, written, weighing, ownStage, clocks } = options;
  const { holdParts } = memory;
  const budget = new ByteBudget(memory.groupBytes, clocks?.held);
  const parts = {
    groups: plan.groups,
    coming: new Set(groups),
    reader,
    holdParts,
    writesWeights: written === 'weights',
  };
  const dropped = new Map(groups.map((group) => [groupLabel(group), group] as const));

  yield* compose(
    readExperts(groups, clocks ? timedReader(reader, clocks) : reader, budget),
    (experts, { stage, lanes }) =>
      experts
        .through(stage(groupExperts))
        .through(stage((all) => normalise(all, parts)))
        .through(stage((all) => (ownStage ? runOwnStage(all, ownStage) : all)))
        .through(
          stage<NormalisedGroup, WeighedGroup>((all) => (weighing ? weigh(all, { ...weighing, groups, reader }) : all)),
        )
        .through(
          lanes(runners.size, async function* (group) {
            dropped.delete(groupLabel(group.group));
            yield* fold(await factorise(group, options), plan);
          }),
        ),
  );

  for (const group of dropped.values()) yield* keepGroup(group, plan, reader);
}

/** Both branches, and where they write. */
export interface WriteOptions extends WriteHooks, JoinOptions {
  readonly copies: readonly Copy[];
  readonly experts: AsyncIterable<OutputRecord>;
  readonly output: Output;
  readonly signal?: AbortSignal | undefined;
  readonly clocks?: StageClocks | undefined;
  /** Called with an error of the sink itself. The error that then ends the pipeline is only a consequence. */
  readonly onSinkError?: ((error: Error) => void) | undefined;
}

/** Writes both branches into the output: the tensors that are copied, and `experts`. Does not commit the output. */
export async function writeAll(options: WriteOptions): Promise<void> {
  const { copies, reader, experts, output, signal, clocks, onSinkError } = options;
  const pool = output.retains ? undefined : new BufferPool(PASS_THROUGH_BLOCKS, READ_BYTES, clocks?.held);
  const copied: AsyncIterable<OutputRecord> = passThrough(copies, reader, pool);
  const timed = clocks ? clocks.source('read', copied, (it) => ('data' in it ? it.data.byteLength : 0)) : copied;
  const sink = writeOutput(output, options);
  if (onSinkError) sink.once('error', onSinkError);
  await pipeline(merge([timed, joinSlices(experts, options)]), sink, { ...(signal && { signal }) });
}

/** Counts only the reads as work. Waiting for the budget does not count. */
const timedReader = (reader: RangeReader, clocks: StageClocks): RangeReader => ({
  read: (file, position, target) =>
    clocks.work('read experts', target.byteLength, () => reader.read(file, position, target)),
  readRange: (range) => clocks.work('read experts', range.end - range.start, () => reader.readRange(range)),
});
