import { Command } from 'commander';
import { plan, type TimedPlan } from '../../streams/plan.js';
import { formatRanges } from '../conversion/groups.js';
import { formatBytes, formatCount, formatPercent, formatSeconds } from '../format.js';
import { addFactorisationOptions, compressOptions, format, json, MODEL, shardSize } from './options.js';
import { formatTable, left } from './table.js';

export function planCommand(): Command {
  const command = new Command('plan')
    .description('show what a compression with the same flags would do: sizes, memory, disk, time; reads headers only')
    .argument(...MODEL)
    .addOption(format());
  return addFactorisationOptions(command)
    .addOption(shardSize())
    .addOption(json())
    .action(async (model: string, flags) => {
      const planned = await plan(model, compressOptions(flags));
      process.stdout.write(`${flags.json ? JSON.stringify(summary(planned), null, 2) : describePlan(planned)}\n`);
    });
}

function summary(planned: TimedPlan) {
  const { model, groups, memory, settings, layout, diskBytes, estimatedSeconds } = planned;
  const { parametersBefore, parametersAfter, bytesBefore, bytesAfter } = planned;
  return {
    family: model.family.name,
    settings,
    parametersBefore,
    parametersAfter,
    bytesBefore,
    bytesAfter,
    memory,
    diskBytes,
    estimatedSeconds,
    shards: layout.shards.map(({ file, tensors, bytes }) => ({ file, tensors: tensors.length, bytes })),
    groups: groups.map(({ layer, projection, group, problem, dtype }) => ({
      layer,
      projection,
      group,
      ...problem,
      dtype,
    })),
  };
}

export function describePlan(planned: TimedPlan): string {
  const { source, model, groups, memory, settings, layout, diskBytes, estimatedSeconds } = planned;
  const { parametersBefore, parametersAfter, bytesBefore, bytesAfter } = planned;
  const [first] = groups;
  const rows = [
    ['source', `${source.folder} (${model.family.name}, ${source.shards.length} shards)`],
    [
      'convert',
      groups.length
        ? `layers ${formatRanges(groups.map(({ layer }) => layer))}, ${settings.projections.join(' and ')}: ${groups.length} groups`
        : 'nothing',
    ],
  ];
  if (first) {
    const { experts: n, rows: p, cols: d, bases: m, rank: r, activation } = first.problem;
    rows.push(
      [
        'each group',
        `${n} experts of ${p} × ${d} → ${n} A of ${p} × ${r} and ${m} bases of ${r} × ${d}, ${activation}`,
      ],
      [
        'solver',
        `${settings.solver}, ${settings.steps} steps, ${memory.workers} group(s) at a time on ${memory.workers * memory.threadsPerWorker} thread(s), ${memory.batchExperts} experts a batch`,
      ],
    );
  }
  const share = (after: number, before: number): string => formatPercent(after / before);
  rows.push(
    [
      'parameters',
      `${formatCount(parametersBefore)} → ${formatCount(parametersAfter)} (${share(parametersAfter, parametersBefore)})`,
    ],
    ['tensor bytes', `${formatBytes(bytesBefore)} → ${formatBytes(bytesAfter)} (${share(bytesAfter, bytesBefore)})`],
    ['memory', `about ${formatBytes(memory.expectedBytes)} of the ${formatBytes(settings.maxMemory)} allowed`],
    ['disk', `${formatBytes(diskBytes)} in ${layout.shards.length} shard(s), ${settings.format} format`],
    ['time', `about ${formatSeconds(estimatedSeconds)}`],
  );
  return formatTable([left(''), left('')], rows);
}
