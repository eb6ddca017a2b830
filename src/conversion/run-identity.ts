/** By which an interrupted run knows its own work again. */
import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { z } from 'zod';
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
  /** When the source's shards were last written to: the fingerprint reads samples, and a run that goes on must not mix two contents. */
  modified: z.record(z.string(), z.number()),
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
  return parseIdentity(
    JSON.parse(
      JSON.stringify({
        wanted: { kind, sourceFingerprint, settings },
        version: VERSION,
        layout: hash.digest('hex'),
        circumstances,
        modified,
      }),
    ),
  );
}

/** The identity of a run elsewhere, as JSON. Throws a `ZodError` where it is none. */
export function parseIdentity(value: unknown): RunIdentity {
  const identity = identitySchema.parse(value);
  return { identity, difference: (other) => differenceBetween(other, identity) };
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
