/** Common parts of the commands that write a result: progress, interruption, and the table at the end. */

import { writeReport } from '../../streams/operations/report.js';
import type { RunOptions, RunResult } from '../../streams/run-options.js';
import { isFitted } from '../conversion/run-report.js';
import { OptionError } from '../errors.js';
import { formatBytes, formatCount, formatPercent, formatSeconds } from '../format.js';
import { isPath, PIPE } from '../location.js';
import { type PeerFlags, peerOptions } from './peers.js';
import { showProgress } from './progress.js';
import { formatTable, left, right } from './table.js';

export interface RunFlags extends PeerFlags {
  readonly workers?: readonly string[];
  readonly json?: boolean;
  readonly force?: boolean;
  readonly allowLarger?: boolean;
  readonly report?: boolean;
  readonly saveEvery?: number;
}

/** Runs an operation, shows its progress and prints its result. */
export async function runAndPrint(
  out: string,
  flags: RunFlags,
  run: (options: RunOptions) => Promise<RunResult>,
): Promise<void> {
  if (flags.report && !isPath(out))
    throw new OptionError('--report', 'the page is written into the result, so the result must be a local folder');
  const display = showProgress('Run the same command again to resume from the finished and saved work.');
  let result: RunResult;
  try {
    const peers = await peerOptions(flags);
    result = await run({
      ...display.hooks,
      force: flags.force ?? false,
      allowLarger: flags.allowLarger ?? false,
      workers: flags.workers ?? [],
      saveEvery: flags.saveEvery,
      peers,
    });
  } finally {
    display.stop();
  }
  for (const warning of result.warnings ?? []) process.stderr.write(`warning: ${warning}\n`);
  const stream = out === PIPE ? process.stderr : process.stdout; // stdout carries the result itself
  stream.write(flags.json ? `${JSON.stringify(result, null, 2)}\n` : `${describe(out, result)}\n`);
  if (flags.report) process.stderr.write(`${(await writeReport(out)).page} is written.\n`);
}

function describe(out: string, result: RunResult): string {
  const { already, groups, parametersBefore, parametersAfter, bytesBefore, bytesAfter, peakRssBytes, seconds } = result;
  const share = (after: number, before: number): string => formatPercent(after / before);
  const rate = `${formatBytes(bytesBefore / seconds)}/s of source`;
  const summary = formatTable(
    [left(''), right('before'), right('after'), right('')],
    [
      ['tensor bytes', formatBytes(bytesBefore), formatBytes(bytesAfter), share(bytesAfter, bytesBefore)],
      [
        'parameters',
        formatCount(parametersBefore),
        formatCount(parametersAfter),
        share(parametersAfter, parametersBefore),
      ],
    ],
  );
  const figures = formatTable(
    [left(''), left('')],
    [
      ['time', formatSeconds(seconds)],
      ['throughput', rate],
      ['peak memory', formatBytes(peakRssBytes)],
    ],
  );
  const heading = already
    ? `${out} already has this result, so nothing was done (--force runs it again). Its record:`
    : `${out} is written.`;
  return (
    [heading, groupTable(result), summary, figures].filter(Boolean).join('\n\n') +
    (groups.length ? '' : '\nNo layer was converted.')
  );
}

function groupTable({ groups }: RunResult): string {
  const fitted = groups.filter(isFitted);
  if (fitted.length === 0) return '';
  const cut = fitted.some(({ groups: parts }) => parts > 1);
  const columns = [left('projection'), ...(cut ? [right('group')] : [])];
  return formatTable(
    [right('layer'), ...columns, right('relative error'), right('mse'), right('steps'), right('time')],
    fitted.map(({ layer, projection, group, relativeError, mse, steps, seconds }) => [
      String(layer),
      projection,
      ...(cut ? [String(group)] : []),
      relativeError.toFixed(4),
      mse.toExponential(2),
      steps ? String(steps) : '-', // not known for imported factors
      formatSeconds(seconds),
    ]),
  );
}
