/** A folder of a bucket of S3, or of a service that speaks its protocol. */
import { AwsV4Signer } from 'aws4fetch';
import { BadCredentialsError, type MobeError, NoAccessError, NotThereError, ServerFailedError } from '../../errors.js';
import { encodePath } from '../web/encode-path.js';
import { passingRefusal } from '../web/try-again.js';
import { versionOf } from '../web/version-of.js';
import { textOf, type Web } from '../web/web.js';
import type { Answer, WebRequest } from '../web/web-client.js';
import type { Link, WebFile, WebListing, WebPlace } from '../web/web-place.js';
import type { S3Settings } from './s3-settings.js';

/** A folder of a bucket. */
export interface S3Folder {
  /** The location as the user gave it. */
  readonly location: string;
  readonly bucket: string;
  /** Empty for the whole bucket, else it ends with a slash. */
  readonly prefix: string;
}

/** The address of a bucket. Amazon's own wants the bucket as a host; other services, and names with dots, as a path. */
export function bucketAddress({ bucket }: S3Folder, { region, endpoint }: S3Settings): string {
  if (endpoint) return `${endpoint.replace(/\/+$/, '')}/${bucket}`;
  return bucket.includes('.')
    ? `https://s3.${region}.amazonaws.com/${bucket}`
    : `https://${bucket}.s3.${region}.amazonaws.com`;
}

/** Signs requests, if there are credentials. */
export type Sign = (
  method: WebRequest['method'],
  url: string,
  headers?: Readonly<Record<string, string>>,
) => Promise<Link>;

export function s3Signer({ credentials, region }: S3Settings): Sign {
  const keys = new Map<string, ArrayBuffer>();
  return async (method, url, headers = {}) => {
    if (!credentials) return { url, headers };
    const { accessKeyId, secretAccessKey, sessionToken } = credentials;
    const signer = new AwsV4Signer({
      ...{ method, url, headers, accessKeyId, secretAccessKey, region, service: 's3', cache: keys },
      ...(sessionToken !== undefined && { sessionToken }),
    });
    const { url: address, headers: all } = await signer.sign();
    return { url: address.href, headers: Object.fromEntries(all) };
  };
}

/** The address of a file of a folder. */
export const objectAddress = (folder: S3Folder, settings: S3Settings, path: string): string =>
  `${bucketAddress(folder, settings)}/${encodePath(`${folder.prefix}${path}`)}`;

export function s3Place(folder: S3Folder, settings: S3Settings, web: Web): WebPlace {
  const { location, bucket, prefix } = folder;
  const { credentials, region } = settings;
  const address = bucketAddress(folder, settings);
  const signed = s3Signer(settings);
  const addressOf = ({ path }: WebFile): string => objectAddress(folder, settings, path);

  const listPage = (after: string | undefined): Promise<string> =>
    web.persist(location, async () => {
      const query = new URLSearchParams({ 'list-type': '2', prefix });
      if (after !== undefined) query.set('continuation-token', after);
      const link = await signed('GET', `${address}/?${query}`);
      return web.client.exchange({ method: 'GET', ...link, follow: () => false }, async (answer) => {
        if (answer.status !== 200) throw passingRefusal(answer.status, answer.headers) ?? (await refusal(answer));
        return textOf(answer);
      });
    });

  const refusal = async (answer: Answer, file?: WebFile): Promise<MobeError> => {
    const { status, headers } = answer;
    const name = file ? `${location}/${file.path}` : location;
    const code = tag('Code', (await answer.bytes(64 * 1024))?.toString('utf8') ?? '') ?? '';
    const home = headers['x-amz-bucket-region'];
    if (home !== undefined && home !== region)
      return new NoAccessError(name, `its bucket is in the region ${home}, not ${region}`, `Set AWS_REGION=${home}.`);
    if (credentials && /^(?:InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken)$/.test(code))
      return new BadCredentialsError(web.server.name, credentials.source, `The server says ${code}: give others.`);
    if (status === 401 || status === 403)
      return new NoAccessError(
        name,
        `the server forbids it (status ${status})`,
        credentials
          ? `Check what the credentials in ${credentials.source} may read; s3:ListBucket and s3:GetObject are needed.`
          : 'Give credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in ~/.aws/credentials.',
      );
    if (status === 404)
      return new NotThereError(
        name,
        file ? 'the server lists it but does not have it' : `there is no bucket ${bucket}`,
        'Check the name, AWS_REGION and AWS_ENDPOINT_URL.',
      );
    return new ServerFailedError(web.server.name, name, `it answers with status ${status} ${code}`.trim(), 1);
  };

  return {
    async list(): Promise<WebListing> {
      const files: WebFile[] = [];
      let after: string | undefined;
      do {
        const page = await listPage(after);
        if (!page.includes('<ListBucketResult'))
          throw new ServerFailedError(web.server.name, location, 'it does not answer as S3 does', 1);
        for (const [, entry = ''] of page.matchAll(/<Contents>(.*?)<\/Contents>/gs)) {
          const key = tag('Key', entry) ?? '';
          if (key.startsWith(prefix) && !key.endsWith('/'))
            files.push({
              path: key.slice(prefix.length),
              bytes: Number(tag('Size', entry)),
              version: versionOf({ etag: tag('ETag', entry) }),
            });
        }
        after = tag('IsTruncated', page) === 'true' ? tag('NextContinuationToken', page) : undefined;
      } while (after !== undefined);
      return { files };
    },
    link: (file) => signed('GET', addressOf(file)),
    refusal,
    current: (file) =>
      web.persist(`${location}/${file.path}`, async () => {
        const link = await signed('HEAD', addressOf(file));
        return web.client.exchange({ method: 'HEAD', ...link }, async (answer) => {
          await answer.bytes(0);
          if (answer.status === 404) return { bytes: 0, version: 0 };
          if (answer.status !== 200)
            throw passingRefusal(answer.status, answer.headers) ?? (await refusal(answer, file));
          return { bytes: Number(answer.headers['content-length']), version: versionOf(answer.headers) };
        });
      }),
  };
}

/** The text of the first element of a name. */
export const tag = (name: string, xml: string): string | undefined => {
  const text = new RegExp(`<${name}>(.*?)</${name}>`, 's').exec(xml)?.[1];
  return text?.replace(/&(?:#x([0-9a-f]+)|#(\d+)|(\w+));/gi, (whole, hex, decimal, entity) =>
    hex || decimal
      ? String.fromCodePoint(Number.parseInt(hex ?? decimal, hex ? 16 : 10))
      : (ENTITIES[entity as string] ?? whole),
  );
};
const ENTITIES: Readonly<Record<string, string>> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" };
