/** What a conversion and the machine that keeps its result say to each other: docs/wire.md, "Output". Checked on arrival. */
import { z } from 'zod';
import { MAX_HEADER_BYTES } from '../../src/checkpoint/header.js';
import { isPlainPath } from '../../src/checkpoint/plain-path.js';

export const OUTPUT_SERVICE = 'output';

/** Paths below the output folder: of side files too, whose folders come along. */
const path = z.string().min(1).max(1024).refine(isPlainPath, 'not a plain path');

/** Of the record that answers `create`: room for ten thousand groups with their losses. */
export const MAX_RECORD_BYTES = 16 * 1024 * 1024;

/** The first request. With the answer comes the record of the very same result, where it is there already. */
export const createParams = z.strictObject({
  wanted: z.strictObject({
    kind: z.enum(['compress', 'export', 'expand', 'fit', 'copy']),
    sourceFingerprint: z.string().max(128),
    settings: z.record(z.string(), z.unknown()),
  }),
  neededBytes: z.int().nonnegative(),
  force: z.boolean(),
});

/** A shard; its header comes as a tensor. Its tensors and their places are read from that. */
export const reserveParams = z.strictObject({ file: path, bytes: z.int().positive() });

/** What `reserve` and `file` may bring. */
export const MAX_HEADER = MAX_HEADER_BYTES + 8;

/** A file, whose content comes as one tensor. */
export const fileParams = z.strictObject({ file: path, bytes: z.int().nonnegative() });

export const commitParams = z.strictObject({ last: z.array(path).max(16) });

/** What `write` brings are parts of reserved tensors, each as a tensor of this name, until all are there. */
export const pieceName = (tensor: string, offset: number): string => `${offset}:${tensor}`;

export function parsePieceName(name: string): { tensor: string; offset: number } | undefined {
  const match = /^(\d{1,16}):(.+)$/s.exec(name);
  return match ? { offset: Number(match[1]), tensor: match[2] as string } : undefined;
}
