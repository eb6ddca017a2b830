/**
 * Results in S3, or in a service that speaks its protocol. Each part is signed with its hash, so the server checks what arrives. A
 * file of several parts is a multipart upload: it appears when it is complete, and a later run goes on with it.
 */
import { createHash } from 'node:crypto';
import { CONFIG_FILE, INDEX_FILE } from '../checkpoint/file-names.js';
import {
  BadCredentialsError,
  type MobeError,
  NotThereError,
  NoWriteAccessError,
  StorageFullError,
  UploadConflictError,
  UploadFailedError,
} from '../errors.js';
import { inLanes } from '../in-lanes.js';
import { s3Files } from '../sources/s3/s3-files.js';
import { bucketAddress, objectAddress, type S3Folder, s3Signer, tag } from '../sources/s3/s3-place.js';
import type { S3Settings } from '../sources/s3/s3-settings.js';
import { passingRefusal, TryAgain } from '../sources/web/try-again.js';
import { openWeb, textOf, type Web } from '../sources/web/web.js';
import type { Answer, WebRequest } from '../sources/web/web-client.js';
import { bodyOf, type Content, hashOf, textContent } from './content.js';
import { PARTS_AT_ONCE, type SentFile, type Sink, type SinkOptions } from './sink.js';

/** The size of a part; S3 allows 5 MiB to 5 GiB. A part that fails is sent again. */
const PART_BYTES = 16 * 1024 * 1024;
/** S3 allows no more. */
const MOST_PARTS = 10_000;
/** Requests for small things. */
const REQUESTS_AT_ONCE = 8;
/** Answers to who aborts an upload that is gone, or at a service that cannot abort. */
const NOT_ABORTED = [404, 405, 501];
/** Cleaning up must not take long. */
const DISCARD_MS = 30_000;

/** A part that the server has. */
interface Part {
  readonly bytes: number;
  readonly etag: string;
}

/** Opens a folder of a bucket. Throws a `MobeError` if nothing can be written there. */
export async function openS3Sink(folder: S3Folder, settings: S3Settings, options: SinkOptions): Promise<Sink> {
  const connect = (signal: AbortSignal): Web =>
    openWeb(
      new URL(bucketAddress(folder, settings)).origin,
      'Wait some minutes, then run the command again.',
      options,
      { signal },
    );
  let web = connect(options.signal);
  const { location, bucket, prefix } = folder;
  const { partBytes = PART_BYTES } = options.web ?? {};
  const sign = s3Signer(settings);
  const addressOf = (file: string): string => objectAddress(folder, settings, file);

  /** Sends one request. A refusal with a status in `allowed` is an answer too. */
  const ask = <T>(
    what: string,
    request: Omit<WebRequest, 'headers'> & { readonly headers?: Readonly<Record<string, string>> },
    use: (answer: Answer) => Promise<T>,
    allowed: readonly number[] = [],
  ): Promise<T> =>
    web.persist(what, async () => {
      const link = await sign(request.method, request.url, request.headers);
      return web.client.exchange({ ...request, ...link, follow: () => false }, async (answer) => {
        const { status } = answer;
        if (status >= 300 && !allowed.includes(status))
          throw passingRefusal(status, answer.headers) ?? (await refusal(what, answer));
        return use(answer);
      });
    });
  const ignore = async (answer: Answer): Promise<void> => void (await answer.bytes(64 * 1024));
  const etagOf = async (answer: Answer): Promise<string> => {
    await ignore(answer);
    return answer.headers.etag ?? '';
  };

  const refusal = async (what: string, answer: Answer): Promise<MobeError> => {
    const { status, headers } = answer;
    return explain(
      what,
      status,
      (await answer.bytes(64 * 1024))?.toString('utf8') ?? '',
      headers['x-amz-bucket-region'],
    );
  };
  const explain = (what: string, status: number, text: string, home?: string | string[]): MobeError => {
    const { credentials, region } = settings;
    const code = tag('Code', text) ?? '';
    const server = web.server.name;
    if (home !== undefined && home !== region)
      return new NoWriteAccessError(
        what,
        `its bucket is in the region ${home}, not ${region}`,
        `Set AWS_REGION=${home}.`,
      );
    if (credentials && /^(?:InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken)$/.test(code))
      return new BadCredentialsError(server, credentials.source, `The server says ${code}: give others.`);
    if (/quota|storage.?full|insufficient/i.test(code) || status === 507)
      return new StorageFullError(what, `the server says ${code || `status ${status}`}`);
    if (status === 401 || status === 403)
      return new NoWriteAccessError(
        what,
        `the server forbids it (status ${status})`,
        credentials
          ? `Check what the credentials in ${credentials.source} may do; s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload are needed.`
          : 'Give credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in ~/.aws/credentials.',
      );
    if (code === 'NoSuchBucket')
      return new NotThereError(
        what,
        `there is no bucket ${bucket}`,
        'Create it, or check the name, AWS_REGION and AWS_ENDPOINT_URL.',
      );
    if (status === 409 || status === 412)
      return new UploadConflictError(what, `the server says ${code || `status ${status}`}`);
    return new UploadFailedError(server, what, `it answers with status ${status} ${code}`.trim(), 1);
  };
  const nameOf = (file: string): string => `${location}/${file}`;

  const put = ({ file, bytes, sha256 }: SentFile, content: Content): Promise<string> =>
    ask(
      nameOf(file),
      {
        method: 'PUT',
        url: addressOf(file),
        headers: { 'x-amz-content-sha256': sha256 },
        body: bodyOf(content, 0, bytes),
      },
      etagOf,
    );

  const remove = (file: string): Promise<void> =>
    ask(nameOf(file), { method: 'DELETE', url: addressOf(file) }, ignore, [404]);

  const uploadAddress = (file: string, upload: string): string =>
    `${addressOf(file)}?${new URLSearchParams({ uploadId: upload })}`;

  const startUpload = (file: string): Promise<string> =>
    ask(nameOf(file), { method: 'POST', url: `${addressOf(file)}?uploads=` }, async (answer) => {
      const id = tag('UploadId', await textOf(answer));
      if (id === undefined)
        throw new UploadFailedError(web.server.name, nameOf(file), 'it does not answer as S3 does', 1);
      return id;
    });

  const abort = (file: string, upload: string): Promise<void> =>
    ask(nameOf(file), { method: 'DELETE', url: uploadAddress(file, upload) }, ignore, NOT_ABORTED);

  /** Uploads that an earlier run has left. None if the server does not tell. */
  const leftUploads = async (file: string): Promise<string[]> => {
    const query = new URLSearchParams({ uploads: '', prefix: `${prefix}${file}` });
    try {
      const text = await ask(location, { method: 'GET', url: `${bucketAddress(folder, settings)}/?${query}` }, textOf);
      return [...text.matchAll(/<Upload>(.*?)<\/Upload>/gs)]
        .filter(([, entry = '']) => tag('Key', entry) === `${prefix}${file}`)
        .flatMap(([, entry = '']) => tag('UploadId', entry) ?? []);
    } catch (error) {
      if (error instanceof NoWriteAccessError || error instanceof UploadFailedError) return [];
      throw error;
    }
  };

  /** The parts of an upload, by number; undefined if the server does not know it. */
  const partsOf = async (file: string, upload: string): Promise<Map<number, Part> | undefined> => {
    const parts = new Map<number, Part>();
    let after: string | undefined = '0';
    try {
      while (after !== undefined) {
        const url = `${uploadAddress(file, upload)}&part-number-marker=${after}`;
        const text: string = await ask(nameOf(file), { method: 'GET', url }, textOf);
        for (const [, entry = ''] of text.matchAll(/<Part>(.*?)<\/Part>/gs))
          parts.set(Number(tag('PartNumber', entry)), {
            bytes: Number(tag('Size', entry)),
            etag: tag('ETag', entry) ?? '',
          });
        after = tag('IsTruncated', text) === 'true' ? tag('NextPartNumberMarker', text) : undefined;
      }
      return parts;
    } catch (error) {
      if (error instanceof NoWriteAccessError || error instanceof UploadFailedError) return undefined;
      throw error;
    }
  };

  const sendParts = async (sent: SentFile, content: Content): Promise<string> => {
    const { file, bytes } = sent;
    const size = Math.max(partBytes, Math.ceil(bytes / MOST_PARTS));
    let upload: string | undefined;
    let known = new Map<number, Part>();
    for (const left of await leftUploads(file)) {
      const parts = upload === undefined ? await partsOf(file, left) : undefined;
      if (parts) [upload, known] = [left, parts];
      else await abort(file, left);
    }
    const id = upload ?? (await startUpload(file));
    const etags: string[] = [];
    const numbers = Array.from({ length: Math.ceil(bytes / size) }, (_, i) => i);
    await inLanes(PARTS_AT_ONCE, numbers, async (i) => {
      const [start, end] = [i * size, Math.min(bytes, (i + 1) * size)];
      const found = known.get(i + 1);
      // The ETag of a part is its MD5, unless the server encrypts with keys of its own.
      if (found?.bytes === end - start && found.etag === `"${await hashOf(content, 'md5', start, end)}"`) {
        etags[i] = found.etag;
        options.onSent?.(end - start);
        return;
      }
      const sha256 = await hashOf(content, 'sha256', start, end);
      etags[i] = await ask(
        nameOf(file),
        {
          method: 'PUT',
          url: `${uploadAddress(file, id)}&partNumber=${i + 1}`,
          headers: { 'x-amz-content-sha256': sha256 },
          body: bodyOf(content, start, end),
        },
        etagOf,
      );
      options.onSent?.(end - start);
    });
    return complete(sent, id, etags);
  };

  const complete = async (sent: SentFile, upload: string, etags: readonly string[]): Promise<string> => {
    const name = nameOf(sent.file);
    const parts = etags.map((etag, i) => `<Part><PartNumber>${i + 1}</PartNumber><ETag>${etag}</ETag></Part>`);
    const xml = textContent(`<CompleteMultipartUpload>${parts.join('')}</CompleteMultipartUpload>`);
    const request = {
      ...{ method: 'POST' as const, url: uploadAddress(sent.file, upload), body: bodyOf(xml), slow: true },
      headers: { 'x-amz-content-sha256': await hashOf(xml, 'sha256'), 'content-type': 'application/xml' },
    };
    const version = await ask(
      name,
      request,
      async (answer) => {
        const text = await textOf(answer);
        // An error may come after the status, since the server answers before it is ready.
        if (answer.status === 200 && text.includes('<Error>')) {
          const code = tag('Code', text) ?? '';
          if (/^(?:InternalError|SlowDown|ServiceUnavailable)$/.test(code)) throw new TryAgain(`it says ${code}`);
          throw explain(name, 200, text);
        }
        return answer.status === 200 ? tag('ETag', text) : undefined;
      },
      [404],
    );
    if (version !== undefined) return version;
    // The answer to an earlier attempt was lost. Then the upload is not known any more, and the file is there.
    const digests = etags.map((etag) => Buffer.from(etag.replaceAll('"', ''), 'hex'));
    const expected = `"${createHash('md5').update(Buffer.concat(digests)).digest('hex')}-${etags.length}"`;
    if (await isThere({ ...sent, version: expected })) return expected;
    throw new UploadFailedError(
      web.server.name,
      name,
      'its parts are gone',
      1,
      'Run the command again: this file is sent anew.',
    );
  };

  const isThere = ({ file, bytes, version }: SentFile): Promise<boolean> =>
    ask(
      nameOf(file),
      { method: 'HEAD', url: addressOf(file) },
      async ({ status, headers }) =>
        status === 200 && Number(headers['content-length']) === bytes && headers.etag === version,
      [404],
    );

  const send = async (sent: SentFile, content: Content): Promise<SentFile> => ({
    ...sent,
    version: await (sent.bytes > partBytes ? sendParts : put)(sent, content),
  });

  // An upload that is begun and removed at once shows whether writing is allowed, before hours of work.
  await abort(CONFIG_FILE, await startUpload(CONFIG_FILE));

  return {
    async list() {
      const files = s3Files(location, options);
      try {
        return (await files.list(location)).map(({ path }) => path);
      } finally {
        await files.close();
      }
    },
    async begin(replaces) {
      const first = replaces.filter((file) => file === INDEX_FILE || file === CONFIG_FILE);
      for (const file of new Set([...first, ...replaces])) await remove(file);
    },
    send,
    async held(files) {
      const found: SentFile[] = [];
      await inLanes(REQUESTS_AT_ONCE, files, async (file) => {
        if (await isThere(file)) found.push(file);
      });
      return found;
    },
    async publish({ small, last }) {
      const isLast = ([{ file }]: (typeof small)[number]): boolean => last.includes(file);
      await inLanes(
        REQUESTS_AT_ONCE,
        small.filter((it) => !isLast(it)),
        async (it) => void (await send(...it)),
      );
      for (const name of last) for (const it of small) if (it[0].file === name) await send(...it);
    },
    async discard(files) {
      web = connect(AbortSignal.timeout(DISCARD_MS));
      const clean = async (file: string): Promise<void> => {
        for (const upload of await leftUploads(file)) await abort(file, upload);
        await remove(file);
      };
      await inLanes(REQUESTS_AT_ONCE, files, (file) => clean(file).catch(() => {}));
    },
    close: () => web.client.close(),
  };
}
