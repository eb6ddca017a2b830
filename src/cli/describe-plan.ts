import type { TimedPlan } from '../conversion/estimate.js';
import { describeEncodings, formatRanges } from '../conversion/group-plan.js';
import type { MemoryTerms } from '../conversion/memory-terms.js';
import { formatBytes, formatCount, formatPercent, formatSeconds } from '../format.js';
import { isPath } from '../location.js';
import { describeDtypes, hasCodes } from '../methods/factor-storage.js';
import { PROJECTIONS } from '../models/family.js';
import { allocationRows, allocationTable } from './describe-allocation.js';
import { formatNotes } from './notes.js';
import { planNotes } from './plan-notes.js';
import { formatTable, left } from './table.js';

/** The terms of memory in words. */
const TERMS: Readonly<Record<keyof MemoryTerms, string>> = {
  process: 'the program',
  headers: 'headers and plan',
  engine: "the engine's library",
  threads: 'threads that compute',
  connections: 'connections to workers',
  groups: 'experts as stored',
  metric: 'metrics of groups',
  slices: 'experts that wait for others beside them',
  targets: 'experts decoded',
  state: "the solver's state",
  batch: 'a batch of experts',
  copies: 'tensors that are copied',
  allocator: 'freed and not yet given back',
};

const describeTerms = (terms: MemoryTerms): string[][] =>
  (Object.keys(TERMS) as Array<keyof MemoryTerms>)
    .filter((term) => terms[term] > 0)
    .map((term) => ['', `${formatBytes(terms[term]).padStart(10)}  ${TERMS[term]}`]);

/** The dtypes of quantised factors; no row if none are. */
function storedRows(groups: TimedPlan['groups']): string[][] {
  const kinds = new Map<string, number>();
  for (const { stored } of groups) kinds.set(describeDtypes(stored), (kinds.get(describeDtypes(stored)) ?? 0) + 1);
  if (!groups.some(({ stored }) => hasCodes(stored))) return [];
  return [...kinds].map(([kind, count]) => ['stored as', kinds.size === 1 ? kind : `${kind}: ${count} group(s)`]);
}

/** The words about the bytes that a run reads from another machine. A folder needs none. */
const toRead = ({ folder, shards }: TimedPlan['source']): string =>
  isPath(folder) ? '' : `, ${formatBytes(shards.reduce((sum, { bytes }) => sum + bytes, 0))} to be read from there`;

/** A plan as text. */
export function describePlan(planned: TimedPlan): string {
  const { source, model, groups, memory, settings, engine, layout, diskBytes, estimatedSeconds } = planned;
  const { parametersBefore, parametersAfter, bytesBefore, bytesAfter, quantised } = planned;
  const projections = PROJECTIONS.filter((it) => groups.some(({ projection }) => projection === it));
  const rows = [
    ['source', `${source.folder} (${model.family.name}, ${source.shards.length} shards${toRead(source)})`],
    [
      'convert',
      groups.length
        ? `layers ${formatRanges(groups.map(({ layer }) => layer))}, ${projections.join(', ')}: ${groups.length} groups`
        : 'nothing',
    ],
  ];
  if (groups.length) {
    const kinds = new Map<string, number>();
    for (const { method, problem } of groups) {
      const kind = `${problem.experts} experts of ${problem.rows} × ${problem.cols} → ${method.describe(problem)}`;
      kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
    }
    rows.push(
      [
        'engine',
        `${engine.name} on ${engine.device}${settings.precision === 'tf32' ? ', products of steps in TF32' : ''}`,
      ],
      ...(settings.allocation
        ? [] // the table of bases follows
        : [...kinds].map(([kind, count]) => [kinds.size === 1 ? 'each group' : `${count} group(s)`, kind])),
      ...storedRows(groups),
      ...allocationRows(planned),
      ...(planned.sizesNote ? [['sizes', planned.sizesNote]] : []),
      ...(planned.metricNote ? [['metric', planned.metricNote]] : []),
      [
        'solver',
        `${settings.solver}, ${settings.steps} steps, ${memory.workers} group(s) at a time on ${memory.workers * memory.threadsPerWorker} thread(s), ${memory.batchExperts} experts a batch`,
      ],
    );
  }
  if (!memory.holdParts && groups.some((group) => group.groups > 1))
    rows.push([
      'reading',
      'weights of layers that are cut into groups are read twice, first for their standard deviation',
    ]);
  if (quantised.before) {
    const kinds = [...new Set(groups.flatMap(describeEncodings))].join(', ');
    const stay =
      quantised.after === quantised.before
        ? 'all stay so'
        : `${quantised.after ? `${quantised.after} stay so, the others are` : 'all are'} decoded`;
    rows.push(['quantised', `${quantised.before} tensors (experts: ${kinds}); ${stay}`]);
  }
  const share = (after: number, before: number): string => formatPercent(after / before);
  rows.push(
    ['tensor bytes', `${formatBytes(bytesBefore)} → ${formatBytes(bytesAfter)} (${share(bytesAfter, bytesBefore)})`],
    [
      'parameters',
      `${formatCount(parametersBefore)} → ${formatCount(parametersAfter)} (${share(parametersAfter, parametersBefore)})`,
    ],
    ['memory', `about ${formatBytes(memory.expectedBytes)} of the ${formatBytes(settings.maxMemory)} allowed:`],
    ...describeTerms(memory.terms),
    ['disk', `${formatBytes(diskBytes)} in ${layout.shards.length} shard(s), ${settings.format} format`],
    ['time', Number.isFinite(estimatedSeconds) ? `about ${formatSeconds(estimatedSeconds)}` : 'unknown'],
  );
  const notes = formatNotes(planNotes(planned));
  const { allocation } = settings;
  return [formatTable([left(''), left('')], rows), allocation && allocationTable(allocation), notes]
    .filter(Boolean)
    .join('\n\n');
}
