import { basename } from 'node:path';
import { type Command, Option } from 'commander';
import type { WeightCheck } from '../../streams/operations/check-weights.js';
import { formatRanges } from '../conversion/group-plan.js';
import type { Inspection, Tally } from '../conversion/inspection.js';
import { formatBytes, formatCount, formatPercent } from '../format.js';
import type { PeerOptions } from '../transport/peer-options.js';
import { formatNotes } from './notes.js';
import { json, MODEL } from './options.js';
import { ca, cache, type PeerFlags, peerOptions, tokenFile } from './peers.js';
import { formatTable, left, right } from './table.js';

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .addOption(new Option('--check', 'also read every weight, and list the tensors that hold NaN or infinite values'))
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .addHelpText(
      'after',
      '\nWithout --check only headers are read. With --check the exit code is 2 if a weight is not finite.',
    )
    .action(async (model: string, flags: InspectFlags) => {
      const { inspect } = await import('../../streams/operations/inspect.js');
      const peers = await peerOptions(flags);
      const inspection = await inspect(model, peers);
      const weights = flags.check ? await check(model, peers) : undefined;
      const result = weights ? { ...inspection, weights } : inspection;
      const text = weights ? `${describe(inspection)}\n\n${describeCheck(weights)}` : describe(inspection);
      process.stdout.write(`${flags.json ? JSON.stringify(result, null, 2) : text}\n`);
      if (weights?.bad.length) process.exitCode = 2;
    });
}

type InspectFlags = PeerFlags & { readonly json?: boolean; readonly check?: boolean };

async function check(model: string, peers: PeerOptions): Promise<WeightCheck> {
  const { showProgress } = await import('./progress.js');
  const { checkWeights } = await import('../../streams/operations/check-weights.js');
  const display = showProgress();
  try {
    return await checkWeights(model, { ...display.hooks, peers });
  } finally {
    display.stop();
  }
}

function describeCheck({ tensors, weights, bad }: WeightCheck): string {
  const read = `${formatCount(weights)} weights in ${tensors} tensors were read`;
  if (bad.length === 0) return `${read}; all are finite.`;
  const rows = bad.map(({ tensor, file, nonFinite }) => [String(nonFinite), tensor, basename(file)]);
  return `${read}. These are NaN or infinite:\n\n${formatTable([right('values'), left('tensor'), left('file')], rows)}`;
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
    ['architecture', architecture ?? 'not given'],
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
