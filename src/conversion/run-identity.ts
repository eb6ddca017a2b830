/** By which an interrupted run knows its own work again. */
import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { isRemote } from '../checkpoint/files.js';
import type { RunIdentity } from '../checkpoint/unfinished-run.js';
import { VERSION } from '../version.js';
import { describeDifference, type WantedOutput } from './existing-output.js';
import type { ConversionPlan } from './plan.js';

/** What decides the bytes of a result beside its settings: what they leave open, and the place where it was settled. */
export type Circumstances = Readonly<Record<string, string | number | undefined>>;

/**
 * The wanted result, this program's version, the output's layout, the circumstances, and when the source's shards were last
 * written to: the fingerprint reads samples, and a run that goes on must not mix two contents.
 */
export async function runIdentity(
  { kind, sourceFingerprint, settings }: WantedOutput,
  { source, layout }: Pick<ConversionPlan, 'source' | 'layout'>,
  circumstances: Circumstances,
): Promise<RunIdentity> {
  const hash = createHash('sha256');
  for (const { file, header } of layout.shards) hash.update(`${file}\0`).update(header);
  const modified: Record<string, number> = {};
  if (!isRemote(source.folder))
    for (const { path } of source.shards) modified[basename(path)] = (await stat(path)).mtimeMs;
  const identity = JSON.parse(
    JSON.stringify({
      wanted: { kind, sourceFingerprint, settings },
      version: VERSION,
      layout: hash.digest('hex'),
      circumstances,
      modified,
    }),
  );
  return { identity, difference: (other) => differenceBetween(other, identity) };
}

interface Identity {
  readonly wanted: WantedOutput;
  readonly version: string;
  readonly layout: string;
  readonly circumstances: Circumstances;
  readonly modified: Readonly<Record<string, number>>;
}

function differenceBetween(before: unknown, now: Identity): string | undefined {
  if (JSON.stringify(before) === JSON.stringify(now)) return undefined;
  const { wanted, version, circumstances, modified } = (before ?? {}) as Partial<Identity>;
  if (!wanted || !circumstances || !modified) return 'its journal is of another kind';
  if (version !== now.version) return `made by version ${version} of mobe, this is ${now.version}`;
  const difference = describeDifference(wanted, now.wanted);
  if (difference) return difference;
  for (const [name, value] of Object.entries(now.circumstances))
    if (circumstances[name] !== value) return `${name} ${circumstances[name]}, now ${value}`;
  for (const [file, time] of Object.entries(now.modified))
    if (modified[file] !== time) return `its source's ${file} was written to or copied since`;
  return 'its shards are laid out otherwise';
}
