import type { Command } from 'commander';
import type { TimedPlan } from '../conversion/estimate.js';
import { describeEncodings, groupKey } from '../conversion/group-plan.js';
import { describePlan } from './describe-plan.js';
import { addFactorisationOptions, format } from './factorisation-options.js';
import { compressOptions, json, keepQuantized, MODEL, maxError, shardSize } from './options.js';
import { ca, peerOptions, tokenFile, workers } from './peers.js';

export function define(command: Command): void {
  command.argument(...MODEL).addOption(format());
  addFactorisationOptions(command)
    .addOption(shardSize())
    .addOption(keepQuantized())
    .addOption(maxError())
    .addOption(workers())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(json())
    .action(async (model: string, flags) => {
      const { plan } = await import('../../streams/operations/plan.js');
      const peers = await peerOptions(flags);
      const planned = await plan(model, compressOptions(flags), { peers, workers: flags.workers });
      process.stdout.write(`${flags.json ? JSON.stringify(summary(planned), null, 2) : describePlan(planned)}\n`);
    });
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
    shards: layout.shards.map(({ file, tensors, bytes }) => ({ file, tensors: tensors.length, bytes })),
    quantised,
    notes: [...planned.source.notes, ...planned.model.notes],
    groups: groups.map((group) => ({
      ...groupKey(group),
      encoding: describeEncodings(group).join(', '),
      ...group.problem,
      dtype: group.dtype,
    })),
  };
}
