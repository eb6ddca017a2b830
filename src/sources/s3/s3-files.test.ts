/** Checkpoints in buckets. The server of the tests checks each signature with code of its own. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TINY_MODEL } from '../../../fixtures/paths.js';
import { S3_KEYS, startS3 } from '../../../fixtures/s3-server.js';
import { temporaryFolder } from '../../../fixtures/temporary-folder.js';
import { refuse, sometimes, type WebServer } from '../../../fixtures/web-server.js';
import { type Checkpoint, fingerprint, openCheckpoint } from '../../checkpoint/open-checkpoint.js';
import * as errors from '../../errors.js';
import { parseS3Location, s3Files } from './s3-files.js';
import { bucketAddress } from './s3-place.js';
import { s3Settings } from './s3-settings.js';

const root = temporaryFolder();
const FOLDER = "models/tiny (a+b) & 'c'";
const TIMING = { stallMs: 5000, firstWaitMs: 1, mostWaitMs: 20, patienceMs: 200, firstPatienceMs: 200 };
const files: Record<string, Uint8Array> = {
  [`${FOLDER}/`]: new Uint8Array(0),
  [`${FOLDER} 2/config.json`]: new Uint8Array(2),
  ...Object.fromEntries(
    readdirSync(TINY_MODEL).map((name) => [`${FOLDER}/${name}`, new Uint8Array(readFileSync(join(TINY_MODEL, name)))]),
  ),
};
let server: WebServer;
let open: (env?: Record<string, string>, location?: string) => Promise<Checkpoint>;
beforeAll(async () => {
  server = await startS3('bucket', files);
  open = (env = S3_KEYS, location = `s3://bucket/${FOLDER}`) =>
    openCheckpoint({
      folder: location,
      files: s3Files(location, {
        web: { timing: TIMING, env: { AWS_ENDPOINT_URL: server.url, AWS_REGION: 'eu-test-1', ...env } },
      }),
    });
});
afterAll(() => server.close());

describe('a checkpoint in a bucket', () => {
  test('is listed, opened by ranges, and the same as in its folder', async () => {
    const checkpoint = await open();
    expect((await checkpoint.files.list(checkpoint.folder)).map(({ path }) => path)).toEqual(
      readdirSync(TINY_MODEL).sort(),
    );
    expect(await fingerprint(checkpoint)).toBe(await fingerprint(await openCheckpoint(TINY_MODEL)));
    await checkpoint.files.checkUnchanged();
    server.fault = sometimes(
      1,
      ({ range }) => range !== undefined,
      (_, response) => refuse(response, 503),
    );
    const file = checkpoint.shards[0]?.path as string;
    const bytes = await checkpoint.files.readRange({ file, start: 0, end: 1_000_000 });
    expect(
      Buffer.compare(bytes, (files[`${FOLDER}/model-00001-of-00003.safetensors`] as Uint8Array).subarray(0, 1_000_000)),
    ).toBe(0);
  });

  test('changes: a look at the end finds it', async () => {
    const checkpoint = await open();
    const key = `${FOLDER}/config.json`;
    const before = files[key] as Uint8Array;
    files[key] = Uint8Array.from([...before, 10]);
    await expect(checkpoint.files.checkUnchanged()).rejects.toThrow(errors.SourceChangedError);
    files[key] = before;
  });

  test('may be public, or the keys in the file of AWS', async () => {
    await expect(open({})).rejects.toThrow(errors.NoAccessError);
    const credentials = join(root, 'credentials');
    writeFileSync(
      credentials,
      `[default]\naws_access_key_id = no\naws_secret_access_key = no\n\n[mine]\naws_access_key_id = ${S3_KEYS.AWS_ACCESS_KEY_ID}\naws_secret_access_key=${S3_KEYS.AWS_SECRET_ACCESS_KEY}\n`,
    );
    writeFileSync(join(root, 'config'), `[default]\nregion = no\n[profile mine]\nregion = eu-test-1\n`);
    const env = {
      AWS_PROFILE: 'mine',
      AWS_SHARED_CREDENTIALS_FILE: credentials,
      AWS_CONFIG_FILE: join(root, 'config'),
    };
    expect(await s3Settings(env)).toMatchObject({ region: 'eu-test-1', endpoint: undefined });
    expect((await open(env)).tensors.size).toBe(423);
    const open2 = await startS3('bucket', files, true);
    expect((await open({ AWS_ENDPOINT_URL: open2.url })).tensors.size).toBe(423);
    await open2.close();
  });

  test.each<[string, Record<string, string>, string, new (...args: never[]) => Error, RegExp]>([
    [
      'wrong secret',
      { ...S3_KEYS, AWS_SECRET_ACCESS_KEY: 'hidden' },
      's3://bucket/a',
      errors.BadCredentialsError,
      /AWS_ACCESS_KEY_ID.*SignatureDoesNotMatch/,
    ],
    [
      'wrong key',
      { ...S3_KEYS, AWS_ACCESS_KEY_ID: 'other' },
      's3://bucket/a',
      errors.BadCredentialsError,
      /InvalidAccessKeyId/,
    ],
    ['no keys', {}, 's3://bucket/a', errors.NoAccessError, /Give credentials in AWS_ACCESS_KEY_ID/],
    ['no bucket', S3_KEYS, 's3://bucket2/a', errors.NotThereError, /no bucket bucket2/],
    ['nothing there', S3_KEYS, 's3://bucket/none', errors.NotACheckpointError, /no config.json/],
  ])('%s is told as that', async (_, env, location, kind, message) => {
    const error = await open(env, location).catch((it) => it);
    expect(error).toBeInstanceOf(kind);
    expect(error.message).toMatch(message);
    expect(error.message + error.stack).not.toMatch(/hidden|OfTheTests/);
  });

  test('in another region is told with the region', async () => {
    server.fault = (_, response) => refuse(response, 301, { 'x-amz-bucket-region': 'us-west-2' });
    await expect(open()).rejects.toThrow('Set AWS_REGION=us-west-2.');
    server.fault = undefined;
  });
});

test.each([
  ['s3://bucket/a', undefined, 'https://bucket.s3.r.amazonaws.com'],
  ['s3://my.bucket/a', undefined, 'https://s3.r.amazonaws.com/my.bucket'],
  ['s3://bucket', 'http://host:9000/', 'http://host:9000/bucket'],
])('%s at endpoint %s is %s', (location, endpoint, address) =>
  expect(bucketAddress(parseS3Location(location), { endpoint, region: 'r', credentials: undefined })).toBe(address),
);

test.each(['s3://', 's3://a', 's3://-bucket/a', 's3://user:key@bucket'])('%s is no location', (location) =>
  expect(() => parseS3Location(location)).toThrow(errors.InvalidLocationError),
);
