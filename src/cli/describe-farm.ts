import type { FarmStatus, RunningGroup, RunStatus } from '../../streams/farm/status.js';
import { formatSeconds, printable } from '../format.js';
import { formatTable, left, right } from './table.js';

/** The state of a farm, for people. */
export function describeFarm({ queue, runs, workers }: FarmStatus): string {
  if (runs.length === 0) return `There are no runs in the queue ${queue}.`;
  return runs.map((run) => describeRun(run, workers[run.engine] ?? 0)).join('\n\n');
}

function describeRun(run: RunStatus, workers: number): string {
  const { waiting, running, failed, done, groups, secondsLeft } = run;
  const end =
    secondsLeft === undefined
      ? workers === 0
        ? 'nobody works on it: start "mobe farm work"'
        : 'the time left is not known yet'
      : secondsLeft === 0
        ? 'nothing is left to fit'
        : `about ${formatSeconds(secondsLeft)} left at this pace`;
  const fits = `${run.engine}, ${run.threads} thread${run.threads === 1 ? '' : 's'} a fit, ${workers} worker${workers === 1 ? '' : 's'}`;
  const lines = [
    `${printable(run.model)} -> ${printable(run.out)}  (run ${run.run}, submitted ${run.submitted}; ${fits})`,
    `${groups} groups: ${done} done, ${running.length} running, ${waiting} waiting, ${failed.length} failed; ${end}`,
  ];
  if (running.length) lines.push(table(running));
  for (const { group, reason, tries } of failed)
    lines.push(`failed after ${tries} ${tries === 1 ? 'try' : 'tries'}: ${group}: ${printable(reason)}`);
  return lines.join('\n');
}

const table = (running: readonly RunningGroup[]): string =>
  formatTable(
    [left('running'), left('on'), right('step'), right('loss'), right('left')],
    running.map(({ group, host, step, steps, loss, secondsLeft }) => [
      ...[group, printable(host), step === undefined ? 'begins' : `${step}/${steps}`],
      ...[loss?.toFixed(4) ?? '', secondsLeft === undefined ? '' : formatSeconds(secondsLeft)],
    ]),
  );
