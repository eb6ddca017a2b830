/** Opens checkpoints in S3 and in services that speak its protocol. */
import { InvalidLocationError } from '../../errors.js';
import { publicLocation } from '../../location.js';
import type { Files } from '../files.js';
import { lazyFiles } from '../lazy-files.js';
import type { SourceOptions } from '../source-options.js';
import { openWeb } from '../web/web.js';
import { webFiles } from '../web/web-files.js';
import type { S3Folder } from './s3-place.js';
import { s3Settings } from './s3-settings.js';

/** Parses a location without a slash at its end. Throws an `InvalidLocationError`. */
export function parseS3Location(location: string): S3Folder {
  // Rules of names: docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
  const [, bucket, below] = /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/(.+))?$/i.exec(location) ?? [];
  if (bucket === undefined)
    throw new InvalidLocationError(
      publicLocation(location),
      'it does not name a bucket',
      's3://bucket or s3://bucket/folder',
    );
  return { location, bucket, prefix: below === undefined ? '' : `${below}/` };
}

/** The files of a folder of a bucket. The settings are read at the first use. */
export function s3Files(location: string, options: SourceOptions): Files {
  const folder = parseS3Location(location);
  return lazyFiles(async () => {
    const settings = await s3Settings(options.web?.env ?? process.env);
    const { bucketAddress, s3Place } = await import('./s3-place.js');
    const { origin } = new URL(bucketAddress(folder, settings));
    const web = openWeb(origin, 'Wait some minutes, then run the command again.', options);
    return webFiles(location, web, s3Place(folder, settings, web));
  });
}
