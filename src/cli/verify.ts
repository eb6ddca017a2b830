import type { Command } from 'commander';
import type { Verification } from '../../streams/operations/verify.js';
import type { Integrity } from '../../streams/operations/verify-manifest.js';
import { groupLabel } from '../conversion/group-plan.js';
import { VerificationError } from '../errors.js';
import { formatBytes, formatSeconds } from '../format.js';
import { compressOptions, engine, json, threads } from './options.js';
import { ca, cache, peerOptions, tokenFile } from './peers.js';
import { formatTable, left, right } from './table.js';

export function define(command: Command): void {
  command
    .argument(
      '<model>',
      'the source: a folder, hf://…, https://…, s3://… or ws://host:port/ of "mobe serve". Given alone, it is the result, which is checked by its manifest',
    )
    .argument('[out]', 'folder that compress, export or expand wrote')
    .addOption(engine())
    .addOption(threads())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .action(async (first: string, second: string | undefined, flags) => {
      const { verify } = await import('../../streams/operations/verify.js');
      const { verifyIntegrity } = await import('../../streams/operations/verify-manifest.js');
      const { showProgress } = await import('./progress.js');
      const display = showProgress();
      const peers = await peerOptions(flags);
      const hooks = { ...display.hooks, peers };
      const check = async () => {
        if (second === undefined) {
          const result = await verifyIntegrity(first, hooks);
          return { result, text: describeIntegrity(first, result) };
        }
        const result = await verify(first, second, { ...compressOptions(flags), ...hooks });
        return { result, text: describe(second, result) };
      };
      const { result, text } = await check().finally(() => display.stop());
      process.stdout.write(`${flags.json ? JSON.stringify(result, null, 2) : text}\n`);
      if (result.problems.length) throw new VerificationError(result.problems);
    });
}

function describe(
  out: string,
  { groups, copiedTensors, copiedBytes, sideFiles, problems, integrity, seconds }: Verification,
): string {
  const table = formatTable(
    [left('group'), right('relative error'), right('reported')],
    groups.map(({ relativeError, reported, ...group }) => [
      groupLabel(group),
      relativeError.toFixed(6),
      reported?.toFixed(6) ?? '-',
    ]),
  );
  if (integrity?.problems.length) return describeIntegrity(out, integrity);
  const compared = `${copiedTensors} tensors (${formatBytes(copiedBytes)}) and ${sideFiles} side files compared byte by byte, ${groups.length} groups recomputed, in ${formatSeconds(seconds)}`;
  const verdict = problems.length ? `${out} is not what it should be (see below).` : `${out} is right.`;
  const written = integrity ? describeIntegrity(out, integrity) : '';
  return [written, groups.length ? table : '', compared, verdict].filter(Boolean).join('\n\n');
}

function describeIntegrity(out: string, { files, tensors, bytes, unlisted, problems, seconds }: Integrity): string {
  const hashed = `${files} files, ${tensors} tensors (${formatBytes(bytes)}) hashed in ${formatSeconds(seconds)}`;
  const others = unlisted.length
    ? `Not written by the conversion, and not checked: ${unlisted.slice(0, 5).join(', ')}${unlisted.length > 5 ? ', …' : ''}.`
    : '';
  const verdict = problems.length
    ? `${out} is not as it was written (see below).`
    : `${out} is, byte for byte, what was written.`;
  return [hashed, others, verdict].filter(Boolean).join('\n');
}
