/** What a conversion and the machine that keeps its result say to each other: docs/wire.md, "Output". Checked on arrival. */
import { z } from 'zod';
import { MAX_HEADER_BYTES } from '../../src/checkpoint/header.js';
import { isHidden, isPlainPath } from '../../src/checkpoint/plain-path.js';
import { wantedOutput } from '../../src/conversion/existing-output.js';
import { groupLabel } from '../../src/conversion/group-plan.js';
import { groupReport } from '../../src/conversion/stored-report.js';
import { listOf } from '../../src/list-of.js';
import { partEntry } from '../../src/output/journal.js';

export const OUTPUT_SERVICE = 'output';

/** Paths below the output folder: of side files too, whose folders come along. */
const path = z
  .string()
  .min(1)
  .max(1024)
  .refine((it) => isPlainPath(it) && !isHidden(it), 'not a plain path');

/** Of the record that answers `create`: room for ten thousand groups with their losses. */
export const MAX_RECORD_BYTES = 16 * 1024 * 1024;

/** Of a run's identity, which names the source's shards twice: seven thousand. */
export const MAX_IDENTITY_BYTES = 1024 * 1024;

/** Of all units, of what is known of them, and of all headers: three quarters of a million tensors. */
export const MAX_UNITS_BYTES = 128 * 1024 * 1024;

/** The first request. Where what is not finished can be continued, the identity of its run comes along. */
export const createParams = z.strictObject({
  wanted: wantedOutput,
  neededBytes: z.int().nonnegative(),
  force: z.boolean(),
});

/** With it comes the record of the very same result, where it is there already. */
export const createAnswer = z.strictObject({
  /** An interrupted run of this identity is there: ask to `resume`. */
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

/** Comes along with `resume`, as JSON. The header of each shard follows it, in this order. */
export const resumeParams = z.strictObject({
  shards: listOf(z.strictObject({ file: path, bytes: z.int().positive() })),
  units: listOf(unit),
});

/** On the way: bytes that were checked. */
export const resumeEvent = z.strictObject({ bytes: z.int().nonnegative() });

/** What answers it, as JSON: of finished units the parts, as the journal has them, and the notes. */
export const resumeAnswer = listOf(
  z.union([
    z.strictObject({ part: partEntry }),
    z
      .strictObject({ done: z.string(), note: groupReport })
      .refine(({ done, note }) => groupLabel(note) === done, 'the report of another group'),
  ]),
);

/** A shard; its header comes as a tensor. Its tensors and their places are read from that. */
export const reserveParams = z.strictObject({ file: path, bytes: z.int().positive() });

/** What `reserve` and `file` may bring. */
export const MAX_HEADER = MAX_HEADER_BYTES + 8;

/** A file, whose content comes as one tensor. */
export const fileParams = z.strictObject({ file: path, bytes: z.int().nonnegative() });

export const commitParams = z.strictObject({ last: z.array(path).max(16) });

export const abandonParams = z.strictObject({ keep: z.boolean() });

/** Whether anything was kept. */
export const abandonAnswer = z.strictObject({ kept: z.boolean() });

/** What `write` brings are parts of reserved tensors, each as a tensor of this name, with its SHA-256 where that is known. */
export const pieceName = (tensor: string, offset: number, sha256 = ''): string => `${offset}:${sha256}:${tensor}`;

export function parsePieceName(name: string): { tensor: string; offset: number; sha256?: string } | undefined {
  const match = /^(\d{1,16}):([0-9a-f]{64})?:(.+)$/s.exec(name);
  if (!match) return undefined;
  const [, offset, sha256, tensor] = match as unknown as [string, string, string | undefined, string];
  return { offset: Number(offset), tensor, ...(sha256 !== undefined && { sha256 }) };
}

/** And among them, as JSON in a tensor of this name, units that are finished. */
export const DONE = 'done';

export const doneParams = z.strictObject({ unit, note: z.unknown() });
export type DoneParams = z.infer<typeof doneParams>;

/** Told as soon as it would survive a crash. */
export const doneEvent = z.strictObject({ done: z.string() });

/** Of these that wait for bytes still to come. */
export const MAX_WAITING_BYTES = 64 * 1024 * 1024;
