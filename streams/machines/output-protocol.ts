/**
 * Messages between a conversion and the machine that stores its result: docs/wire.md, "Output". Both sides check what they
 * receive.
 */
import { z } from 'zod';
import { MAX_HEADER_BYTES } from '../../src/checkpoint/header.js';
import { isHidden, isPlainPath } from '../../src/checkpoint/plain-path.js';
import { wantedOutput } from '../../src/conversion/existing-output.js';
import { groupLabel } from '../../src/conversion/group-plan.js';
import { groupReport } from '../../src/conversion/stored-report.js';
import { listOf } from '../../src/list-of.js';
import { partEntry } from '../../src/output/journal.js';

export const OUTPUT_SERVICE = 'output';

/** A path below the output folder. Side files may lie in subfolders. */
const path = z
  .string()
  .min(1)
  .max(1024)
  .refine((it) => isPlainPath(it) && !isHidden(it), 'not a plain path');

/** The largest record in the answer to `create`: room for ten thousand groups with their losses. */
export const MAX_RECORD_BYTES = 16 * 1024 * 1024;

/** The largest identity of a run. It names the source's shards twice, so there is room for seven thousand shards. */
export const MAX_IDENTITY_BYTES = 1024 * 1024;

/** The largest list of units, answer to `resume`, and sum of headers: room for three quarters of a million tensors. */
export const MAX_UNITS_BYTES = 128 * 1024 * 1024;

/** Parameters of `create`, the first request. If the run can be resumed, its identity follows as a tensor. */
export const createParams = z.strictObject({
  wanted: wantedOutput,
  neededBytes: z.int().nonnegative(),
  force: z.boolean(),
});

/** The answer to `create`. If the same result is already there, its record follows as a tensor. */
export const createAnswer = z.strictObject({
  /** Whether an interrupted run of this identity can be resumed by `resume`. */
  unfinished: z.boolean(),
});

const tensor = z.string().min(1);
const part = z.strictObject({ tensor, offset: z.int().nonnegative(), bytes: z.int().nonnegative() });
const unit = z.strictObject({
  id: z.string().min(1),
  parts: listOf(part),
  noted: z.boolean(),
  sources: listOf(z.string()).default([]),
});

/** The JSON that comes with `resume`. The headers of the shards follow it, in the same order. */
export const resumeParams = z.strictObject({
  shards: listOf(z.strictObject({ file: path, bytes: z.int().positive() })),
  units: listOf(unit),
});

/** Progress of `resume`: bytes checked so far. */
export const resumeEvent = z.strictObject({ bytes: z.int().nonnegative() });

/** The JSON that answers `resume`: parts and notes of finished units, as the journal has them. */
export const resumeAnswer = listOf(
  z.union([
    z.strictObject({ part: partEntry }),
    z
      .strictObject({ done: z.string(), note: z.union([groupReport, listOf(groupReport)]) })
      .refine(({ done, note }) => [note].flat().map(groupLabel).join(', ') === done, 'the report of another group'),
  ]),
);

/** Parameters of `reserve`: a shard. Its header comes as a tensor and gives the places of the shard's tensors. */
export const reserveParams = z.strictObject({ file: path, bytes: z.int().positive() });

/** The largest header that `reserve` or `resume` may send. */
export const MAX_HEADER = MAX_HEADER_BYTES + 8;

/** Parameters of `file`: a file whose content comes as one tensor. */
export const fileParams = z.strictObject({ file: path, bytes: z.int().nonnegative() });

export const commitParams = z.strictObject({ last: z.array(path).max(16) });

export const abandonParams = z.strictObject({ keep: z.boolean() });

/** The answer to `abandon`: whether anything was kept. */
export const abandonAnswer = z.strictObject({ kept: z.boolean() });

/** The name under which `write` sends a part of a reserved tensor. It includes the part's SHA-256 if that is known. */
export const pieceName = (tensor: string, offset: number, sha256 = ''): string => `${offset}:${sha256}:${tensor}`;

/** The reverse of `pieceName`; undefined if `name` is not of this form. */
export function parsePieceName(name: string): { tensor: string; offset: number; sha256?: string } | undefined {
  const match = /^(\d{1,16}):([0-9a-f]{64})?:(.+)$/s.exec(name);
  if (!match) return undefined;
  const [, offset, sha256, tensor] = match as unknown as [string, string, string | undefined, string];
  return { offset: Number(offset), tensor, ...(sha256 !== undefined && { sha256 }) };
}

/** The name under which `write` sends a finished unit, as JSON. */
export const DONE = 'done';

export const doneParams = z.strictObject({ unit, note: z.unknown() });
export type DoneParams = z.infer<typeof doneParams>;

/** The event that a finished unit is on disk and survives a crash. */
export const doneEvent = z.strictObject({ done: z.string() });

/** The most bytes of finished units that may wait for their data. */
export const MAX_WAITING_BYTES = 64 * 1024 * 1024;
