import { createHash } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';

/** A number of 48 bits that stands for an ETag, or else for a date. */
export const versionOf = ({ etag, 'last-modified': date }: IncomingHttpHeaders): number =>
  createHash('sha256')
    .update(`${etag ?? date}`)
    .digest()
    .readUIntBE(0, 6);
