/**
 * The program on one screen: a conversion as a composition of stages. Highland composes them (flow/highland.ts), one file in
 * stages/ has each. Bytes are bounded by the budget that `readExperts` asks.
 *
 *     read experts ─> group ─> normalise ─> factorise ─> fold ─┐
 *     read what is copied ─────────────────────────────────────┴─> write
 */
import { pipeline } from 'node:stream/promises';
import type { ConversionPlan, Copy } from '../src/conversion/conversion-plan.js';
import { expertCopies } from '../src/conversion/group-places.js';
import { type GroupPlan, groupKey } from '../src/conversion/group-plan.js';
import { type MemoryPlan, PASS_THROUGH_BLOCKS } from '../src/conversion/memory-plan.js';
import type { Output } from '../src/output/output.js';
import { type RangeReader, READ_BYTES } from '../src/sources/files.js';
import { BufferPool } from './flow/buffer-pool.js';
import { ByteBudget } from './flow/byte-budget.js';
import { compose, merge } from './flow/highland.js';
import { type OwnStage, runOwnStage } from './flow/own-stage.js';
import type { StageClocks } from './flow/stage-clock.js';
import type { NormalisedGroup, OutputRecord } from './records.js';
import { type FactoriseOptions, factorise } from './stages/factorise.js';
import { fold } from './stages/fold.js';
import { groupExperts } from './stages/group-experts.js';
import { normalise } from './stages/normalise.js';
import { passThrough } from './stages/pass-through.js';
import { readExperts } from './stages/read-experts.js';
import { type WriteHooks, writeOutput } from './stages/write-output.js';

export interface ExpertsOptions extends FactoriseOptions {
  /** Those to fit; an interrupted run has finished the others. */
  readonly groups: readonly GroupPlan[];
  readonly plan: Pick<ConversionPlan, 'groups' | 'format' | 'separate'>;
  readonly memory: MemoryPlan;
  readonly reader: RangeReader;
  /** A stage of the caller's own, after normalising. It may drop groups: their weights are then kept as they are. */
  readonly ownStage?: OwnStage<NormalisedGroup> | undefined;
}

/** The branch that factorises. */
export async function* compressExperts(options: ExpertsOptions): AsyncGenerator<OutputRecord> {
  const { groups, plan, memory, reader, runners, written, ownStage, clocks } = options;
  const { holdParts } = memory;
  const budget = new ByteBudget(memory.groupBytes, clocks?.held);
  const parts = {
    groups: plan.groups,
    coming: new Set(groups),
    reader,
    holdParts,
    writesWeights: written === 'weights',
  };
  const dropped = new Set(groups);

  yield* compose(
    readExperts(groups, clocks ? timedReader(reader, clocks) : reader, budget),
    (experts, { stage, lanes }) =>
      experts
        .through(stage(groupExperts))
        .through(stage((all) => normalise(all, parts)))
        .through(stage((all) => (ownStage ? runOwnStage(all, ownStage) : all)))
        .through(
          lanes(runners.size, async function* (group) {
            dropped.delete(group.group);
            yield* fold(await factorise(group, options), plan);
          }),
        ),
  );

  for (const group of dropped) {
    yield* passThrough(expertCopies(group, plan), reader);
    yield { finished: { ...groupKey(group), seconds: 0, keptError: null } };
  }
}

export interface WriteOptions extends WriteHooks {
  readonly copies: readonly Copy[];
  readonly reader: RangeReader;
  readonly experts: AsyncIterable<OutputRecord>;
  readonly output: Output;
  readonly signal?: AbortSignal | undefined;
  readonly clocks?: StageClocks | undefined;
  /** The sink's own failure: what ends the pipeline after it is only its echo. */
  readonly onSinkError?: ((error: Error) => void) | undefined;
}

/** Both branches into the output. */
export async function writeAll(options: WriteOptions): Promise<void> {
  const { copies, reader, experts, output, signal, clocks, onSinkError } = options;
  const pool = output.retains ? undefined : new BufferPool(PASS_THROUGH_BLOCKS, READ_BYTES, clocks?.held);
  const copied: AsyncIterable<OutputRecord> = passThrough(copies, reader, pool);
  const timed = clocks ? clocks.source('read', copied, (it) => ('data' in it ? it.data.byteLength : 0)) : copied;
  const sink = writeOutput(output, options);
  if (onSinkError) sink.once('error', onSinkError);
  await pipeline(merge([timed, experts]), sink, { ...(signal && { signal }) });
}

/** Reading is what takes the time; waiting for the budget is being blocked, not working. */
const timedReader = (reader: RangeReader, clocks: StageClocks): RangeReader => ({
  read: (file, position, target) =>
    clocks.work('read experts', target.byteLength, () => reader.read(file, position, target)),
  readRange: (range) => clocks.work('read experts', range.end - range.start, () => reader.readRange(range)),
});
