import { Command } from 'commander';
import { type Verification, verify } from '../../streams/verify.js';
import { groupLabel } from '../conversion/groups.js';
import { VerificationError } from '../errors.js';
import { formatBytes, formatSeconds } from '../format.js';
import { compressOptions, engine, json, MODEL, threads } from './options.js';
import { ca, peerOptions, tokenFile } from './peers.js';
import { showProgress } from './progress.js';
import { formatTable, left, right } from './table.js';

export function verifyCommand(): Command {
  return new Command('verify')
    .description('read a result and its source again and compare them')
    .argument(...MODEL)
    .argument('<out>', 'folder that compress, export or expand wrote')
    .addOption(engine())
    .addOption(threads())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(json())
    .action(async (model: string, out: string, flags) => {
      const display = showProgress();
      const peers = await peerOptions(flags);
      const result = await verify(model, out, { ...compressOptions(flags), ...display.hooks, peers }).finally(() =>
        display.stop(),
      );
      process.stdout.write(`${flags.json ? JSON.stringify(result, null, 2) : describe(out, result)}\n`);
      if (result.problems.length) throw new VerificationError(result.problems);
    });
}

function describe(
  out: string,
  { groups, copiedTensors, copiedBytes, sideFiles, problems, seconds }: Verification,
): string {
  const table = formatTable(
    [left('group'), right('relative error'), right('reported')],
    groups.map(({ relativeError, reported, ...group }) => [
      groupLabel(group),
      relativeError.toFixed(6),
      reported?.toFixed(6) ?? '-',
    ]),
  );
  const compared = `${copiedTensors} tensors (${formatBytes(copiedBytes)}) and ${sideFiles} side files compared byte by byte, ${groups.length} groups recomputed, in ${formatSeconds(seconds)}`;
  const verdict = problems.length ? `${out} is not what it should be (see below).` : `${out} is right.`;
  return [groups.length ? table : '', compared, verdict].filter(Boolean).join('\n\n');
}
