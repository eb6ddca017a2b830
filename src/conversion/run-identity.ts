/** Identity that decides whether an interrupted run can be resumed, and which of its work is still valid then. */
import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { z } from 'zod';
import { fingerprints } from '../checkpoint/open-checkpoint.js';
import { fileIn } from '../location.js';
import type { RunIdentity } from '../output/unfinished-run.js';
import { VERSION } from '../version.js';
import type { ConversionPlan } from './conversion-plan.js';
import { describeDifference, type WantedOutput, wantedOutput } from './existing-output.js';

/** Facts beside the settings that decide the bytes of a result, for example the device and the threads of a fit. */
export type Circumstances = Readonly<Record<string, string | number | undefined>>;

const identitySchema = z.strictObject({
  wanted: wantedOutput,
  /** The version of this program. */
  version: z.string().max(64),
  /** SHA-256 of the output's shards: their names and headers. */
  layout: z.string().max(64),
  circumstances: z.record(z.string(), z.union([z.string(), z.number()])),
  /** `Fingerprints.headers` of the source. */
  headers: z.string().max(64),
  /**
   * The modification time of each source shard. Fingerprints read only samples, and a resumed run must not mix two contents of
   * a shard.
   */
  modified: z.record(z.string(), z.number()),
  /** `Fingerprints.contents` of the source. */
  contents: z.record(z.string(), z.string().max(64)),
});

type Identity = z.infer<typeof identitySchema>;

/** Computes the identity of a run. Reads samples of the source. */
export async function runIdentity(
  { kind, sourceFingerprint, settings }: WantedOutput,
  { source, layout }: Pick<ConversionPlan, 'source' | 'layout'>,
  circumstances: Circumstances,
): Promise<RunIdentity> {
  const hash = createHash('sha256');
  for (const { file, header } of layout.shards) hash.update(`${file}\0`).update(header);
  const held = await source.files.list(source.folder);
  const times = new Map(held.map((it) => [fileIn(source.folder, it.path), it.modified]));
  const modified = Object.fromEntries(source.shards.map(({ path }) => [basename(path), times.get(path)]));
  const { headers, contents } = await fingerprints(source);
  const commit = await source.files.commit?.(source.folder);
  return parseIdentity(
    JSON.parse(
      JSON.stringify({
        wanted: { kind, sourceFingerprint, settings },
        version: VERSION,
        layout: hash.digest('hex'),
        circumstances: { ...circumstances, commit },
        headers,
        modified,
        contents,
      }),
    ),
  );
}

/** Checks an identity that came as JSON, for example from another machine. Throws a `ZodError` if it is not one. */
export function parseIdentity(value: unknown): RunIdentity {
  const identity = identitySchema.parse(value);
  return {
    identity,
    difference: (other) => differenceBetween(other, identity),
    changedSources: (other) => changedShards((other ?? {}) as Partial<Identity>, identity),
  };
}

function differenceBetween(before: unknown, now: Identity): string | undefined {
  if (JSON.stringify(before) === JSON.stringify(now)) return undefined;
  const identity = (before ?? {}) as Partial<Identity>;
  const { wanted, version, circumstances, modified, contents } = identity;
  if (!wanted || !circumstances || !modified || !contents) return 'its journal is of another kind';
  if (version !== now.version) return `made by version ${version} of mobe, this is ${now.version}`;
  const changed = changedShards(identity, now);
  // If some shards have changed, the fingerprint has too. Work made from the other shards is still valid.
  const { sourceFingerprint } = changed.length ? now.wanted : wanted;
  const difference = describeDifference({ ...wanted, sourceFingerprint }, now.wanted);
  if (difference) return difference;
  if (identity.headers !== now.headers) return 'made from another source';
  // Another commit may have the same weights and other small files.
  const { commit } = now.circumstances;
  if (circumstances.commit !== undefined && circumstances.commit !== commit)
    return `it reads commit ${circumstances.commit}, and its source is ${commit === undefined ? 'another one' : `at ${commit}`} now: name that commit behind an "@" to finish it`;
  for (const [name, value] of Object.entries(now.circumstances))
    if (circumstances[name] !== value) return `${name} ${circumstances[name]}, now ${value}`;
  if (identity.layout !== now.layout) return 'its shards are laid out otherwise';
  if (changed.length === Object.keys(now.modified).length)
    return changed.length === 1
      ? `its source's ${changed[0]} was written to or copied since`
      : `all ${changed.length} shards of its source were written to or copied since`;
  return undefined;
}

/** The source shards that have changed, or may have changed, since the earlier run. */
function changedShards({ modified = {}, contents = {} }: Partial<Identity>, now: Identity): string[] {
  return Object.keys(now.modified).filter(
    (file) => modified[file] !== now.modified[file] || contents[file] !== now.contents[file],
  );
}
