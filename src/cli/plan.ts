import { type Command, Option } from 'commander';
import type { TimedPlan } from '../conversion/estimate.js';
import { describeEncodings, groupKey } from '../conversion/group-plan.js';
import { hasCodes } from '../methods/factor-storage.js';
import { curveTable } from './describe-allocation.js';
import { describePlan } from './describe-plan.js';
import { addFactorisationOptions, format } from './factorisation-options.js';
import { compressOptions, json, keepQuantized, MODEL, maxError, shardSize } from './options.js';
import { ca, cache, peerOptions, tokenFile, workers } from './peers.js';
import { planNotes } from './plan-notes.js';
import { showProgress } from './progress.js';

export function define(command: Command): void {
  command.argument(...MODEL).addOption(format());
  addFactorisationOptions(command)
    .addOption(shardSize())
    .addOption(keepQuantized())
    .addOption(maxError())
    .addOption(
      new Option(
        '--curve',
        'also print the predicted loss by size, from the short fits of an allocation; fits that are missing are made',
      ),
    )
    .addOption(workers())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .action(async (model: string, flags) => {
      const { plan } = await import('../../streams/operations/plan.js');
      const peers = await peerOptions(flags);
      const { curve = false, ...factorisation } = flags;
      const display = curve ? showProgress() : undefined;
      let planned: TimedPlan;
      try {
        const run = { ...display?.hooks, peers, workers: flags.workers, curve };
        planned = await plan(model, compressOptions(factorisation), run);
      } finally {
        display?.stop();
      }
      process.stdout.write(`${flags.json ? JSON.stringify(summary(planned), null, 2) : describe(planned, curve)}\n`);
    });
}

function describe(planned: TimedPlan, curve: boolean): string {
  const { allocation } = planned.settings;
  return [describePlan(planned), ...(curve && allocation ? [curveTable(allocation)] : [])].join('\n\n');
}

function summary(planned: TimedPlan) {
  const { model, groups, memory, settings, engine, layout, diskBytes, estimatedSeconds } = planned;
  const { parametersBefore, parametersAfter, bytesBefore, bytesAfter, quantised } = planned;
  return {
    family: model.family.name,
    settings,
    engine,
    parametersBefore,
    parametersAfter,
    bytesBefore,
    bytesAfter,
    memory,
    diskBytes,
    estimatedSeconds,
    probes: planned.probes,
    shards: layout.shards.map(({ file, tensors, bytes }) => ({ file, tensors: tensors.length, bytes })),
    quantised,
    notes: [...planNotes(planned), ...(planned.sizesNote === undefined ? [] : [planned.sizesNote])],
    groups: groups.map((group) => ({
      ...groupKey(group),
      encoding: describeEncodings(group).join(', '),
      ...group.problem,
      dtype: group.dtype,
      ...(hasCodes(group.stored) && { stored: group.stored }),
    })),
  };
}
