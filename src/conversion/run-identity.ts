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

/** What decides the bytes of a result beside its settings: what they leave open, and the place where it was settled. */
export type Circumstances = Readonly<Record<string, string | number | undefined>>;

const identitySchema = z.strictObject({
  wanted: wantedOutput,
  /** Of this program. */
  version: z.string().max(64),
  /** SHA-256 of the output's shards: their names and headers. */
  layout: z.string().max(64),
  circumstances: z.record(z.string(), z.union([z.string(), z.number()])),
  /** `Fingerprints.headers` of the source. */
  headers: z.string().max(64),
  /**
   * When each of the source's shards was last written to. The fingerprints read samples only, and a run that goes on must not mix two
   * contents of a shard.
   */
  modified: z.record(z.string(), z.number()),
  /** `Fingerprints.contents` of the source. */
  contents: z.record(z.string(), z.string().max(64)),
});

type Identity = z.infer<typeof identitySchema>;

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
  return parseIdentity(
    JSON.parse(
      JSON.stringify({
        wanted: { kind, sourceFingerprint, settings },
        version: VERSION,
        layout: hash.digest('hex'),
        circumstances,
        headers,
        modified,
        contents,
      }),
    ),
  );
}

/** The identity of a run elsewhere, as JSON. Throws a `ZodError` where it is none. */
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
  // Where some shards are other ones now, the fingerprint is too. What was made from the others is still good.
  const { sourceFingerprint } = changed.length ? now.wanted : wanted;
  const difference = describeDifference({ ...wanted, sourceFingerprint }, now.wanted);
  if (difference) return difference;
  if (identity.headers !== now.headers) return 'made from another source';
  for (const [name, value] of Object.entries(now.circumstances))
    if (circumstances[name] !== value) return `${name} ${circumstances[name]}, now ${value}`;
  if (identity.layout !== now.layout) return 'its shards are laid out otherwise';
  if (changed.length === Object.keys(now.modified).length)
    return changed.length === 1
      ? `its source's ${changed[0]} was written to or copied since`
      : `all ${changed.length} shards of its source were written to or copied since`;
  return undefined;
}

/** Shards of the source that are not, or may not be, what they were for another run. */
function changedShards({ modified = {}, contents = {} }: Partial<Identity>, now: Identity): string[] {
  return Object.keys(now.modified).filter(
    (file) => modified[file] !== now.modified[file] || contents[file] !== now.contents[file],
  );
}
