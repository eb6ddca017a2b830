import { Command } from 'commander';
import { inspect } from '../../streams/operations/inspect.js';
import { formatRanges } from '../conversion/group-plan.js';
import type { Inspection, Tally } from '../conversion/inspection.js';
import { formatBytes, formatCount, formatPercent } from '../format.js';
import { formatNotes } from './notes.js';
import { json, MODEL } from './options.js';
import { ca, type PeerFlags, peerOptions, tokenFile } from './peers.js';
import { formatTable, left, right } from './table.js';

export function inspectCommand(): Command {
  return new Command('inspect')
    .description('show what is in a checkpoint; reads headers only')
    .argument(...MODEL)
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(json())
    .action(async (model: string, flags: PeerFlags & { json?: boolean }) => {
      const inspection = await inspect(model, await peerOptions(flags));
      process.stdout.write(`${flags.json ? JSON.stringify(inspection, null, 2) : describe(inspection)}\n`);
    });
}

function describe(inspection: Inspection): string {
  const {
    folder,
    family,
    modelType,
    architecture,
    hiddenLayers,
    expertLayers,
    expertCounts,
    expertShape,
    shards,
    total,
  } = inspection;
  const facts = [
    ['family', family ?? `none known (model_type "${modelType}")`],
    ['architecture', architecture ?? 'not said'],
    [
      'layers',
      `${hiddenLayers ?? 'unknown'}, with routed experts: ${expertLayers.length ? formatRanges(expertLayers) : 'none'}`,
    ],
    ['experts a layer', expertShape ? `${formatRanges(expertCounts)} of ${expertShape.join(' × ')}` : 'none'],
    ...Object.entries(inspection.quantised).map(([kind, count]) => ['quantised', `${count} tensors: ${kind}`]),
    ['shards', `${shards.length} (${formatBytes(shards.reduce((sum, { bytes }) => sum + bytes, 0))} on disk)`],
    ['tensors', String(total.tensors)],
    ['parameters', formatCount(total.parameters)],
  ];
  return [
    folder,
    formatTable([left(''), left('')], facts),
    tallies('kind', inspection.kinds, total),
    tallies('dtype', inspection.dtypes, total),
    formatNotes(inspection.notes),
    inspection.obstacle && `Cannot be converted: ${inspection.obstacle}`,
  ]
    .filter(Boolean)
    .join('\n\n');
}

const tallies = (title: string, groups: Readonly<Record<string, Tally>>, total: Tally): string =>
  formatTable(
    [left(title), right('tensors'), right('parameters'), right('bytes'), right('')],
    Object.entries(groups).map(([name, { tensors, parameters, bytes }]) => [
      name,
      String(tensors),
      formatCount(parameters),
      formatBytes(bytes),
      formatPercent(bytes / total.bytes),
    ]),
  );
