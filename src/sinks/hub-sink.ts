/**
 * Results on the Hugging Face hub. Large files go to its storage by the protocol of git-lfs while the run works; nobody sees them
 * there. One commit at the end names all files, so a repository never has a part of a result.
 */
import { z } from 'zod';
import {
  BadCredentialsError,
  InvalidLocationError,
  type MobeError,
  NotThereError,
  NoWriteAccessError,
  OfflineError,
  RenamedModelError,
  StorageFullError,
  UploadConflictError,
  UploadFailedError,
} from '../errors.js';
import { inLanes } from '../in-lanes.js';
import { listOf } from '../list-of.js';
import { COMMIT } from '../sources/hub/hub-cache.js';
import type { HubLocation } from '../sources/hub/hub-location.js';
import { nextPage, parsed, repoIn } from '../sources/hub/hub-place.js';
import type { HubSettings } from '../sources/hub/hub-settings.js';
import { readTree, type TreeEntry, treeEntry } from '../sources/hub/hub-tree.js';
import { passingRefusal, TryAgain } from '../sources/web/try-again.js';
import { openWeb, textOf } from '../sources/web/web.js';
import { type Answer, redirectTarget, type WebRequest } from '../sources/web/web-client.js';
import { VERSION } from '../version.js';
import { bodyOf, type Content, hashOf, textContent, wholeOf } from './content.js';
import { PARTS_AT_ONCE, type Publication, type SentFile, type Sink, type SinkOptions } from './sink.js';

/** The first bytes of a file, by which the hub tells texts from data. huggingface_hub sends as many. */
const SAMPLE_BYTES = 512;
/** The hub takes no more objects in one request. huggingface_hub has the same limit. */
const OBJECTS_AT_ONCE = 256;
/** Commits of others may come between a look at the branch and the own commit. */
const MOST_COMMITS = 5;

/** Signed addresses that may expire while one file is sent. The file is then sent anew. */
const MOST_UPLOADS = 5;

const LFS_HEADERS = {
  accept: 'application/vnd.git-lfs+json',
  'content-type': 'application/vnd.git-lfs+json',
};

const head = z.object({ sha: z.string().regex(COMMIT), private: z.boolean().optional() });
const modes = z.object({ files: listOf(z.object({ path: z.string(), uploadMode: z.string() })) });
const action = z.object({ href: z.url(), header: z.record(z.string(), z.coerce.string()).optional() });
const object = z.object({
  oid: z.string(),
  error: z.object({ code: z.int(), message: z.string() }).optional(),
  actions: z.object({ upload: action.optional(), verify: action.optional() }).optional(),
});
const batch = z.object({ objects: listOf(object) });
type LfsObject = z.infer<typeof object>;

/** Opens a branch of a model, and creates the model as a private one if there is none. Throws if nothing can be written there. */
export async function openHubSink(wanted: HubLocation, settings: HubSettings, options: SinkOptions): Promise<Sink> {
  const { location, repo, revision, below } = wanted;
  const { endpoint, token, offline } = settings;
  if (COMMIT.test(revision) || revision.startsWith('refs/'))
    throw new InvalidLocationError(location, `"${revision}" is no branch`, 'hf://org/name or hf://org/name@branch');
  if (offline) throw new OfflineError(location, 'HF_HUB_OFFLINE is set', 'write');
  if (!token)
    throw new NoWriteAccessError(
      location,
      'no token was given',
      `Make one that may write at ${endpoint}/settings/tokens, and give it in HF_TOKEN or log in with "hf auth login".`,
    );
  const web = openWeb(new URL(endpoint).origin, 'Wait some minutes, then run the command again.', options, options);
  const own = { authorization: `Bearer ${token.value}` };
  const api = `${endpoint}/api/models/${repo}`;
  const branch = encodeURIComponent(revision);
  const inRepo = (file: string): string => (below === '' ? file : `${below}/${file}`);
  const relative = (path: string): string => (below === '' ? path : path.slice(below.length + 1));

  const failed = (what: string, reason: string): MobeError => new UploadFailedError(web.server.name, what, reason, 1);

  const refusal = (what: string, { status, headers, ...answer }: Answer, text: string): MobeError => {
    const moved = redirectTarget({ status, headers, ...answer });
    const renamed = moved && repoIn(moved.pathname);
    if (renamed) return new RenamedModelError(location, location.replace(repo, renamed));
    const message = String(headers['x-error-message'] ?? errorIn(text) ?? '');
    return explain(what, status, message, String(headers['x-error-code'] ?? ''));
  };
  const explain = (what: string, status: number, message: string, code = ''): MobeError => {
    const said = message === '' ? `status ${status}` : `"${message}"`;
    if (status === 401)
      return new BadCredentialsError(
        web.server.name,
        token.source,
        `Make a token that may write to ${repo} at ${endpoint}/settings/tokens.`,
      );
    if ([402, 413, 507].includes(status) || (status === 403 && /storage|quota|limit/i.test(message)))
      return new StorageFullError(what, `the hub says ${said}`);
    if (status === 403)
      return new NoWriteAccessError(
        what,
        `the token in ${token.source} may not write there (the hub says ${said})`,
        `Make a token that may write to ${repo} at ${endpoint}/settings/tokens, or name a model of yours.`,
      );
    if (status === 409 || status === 412) return new UploadConflictError(location, `the hub says ${said}`);
    if (code === 'RepoNotFound' || status === 404)
      return new NotThereError(
        what,
        `the hub says ${said}`,
        `Check the name and the permissions of the token in ${token.source}.`,
      );
    return new UploadFailedError(
      web.server.name,
      what,
      `the hub says ${said}`,
      1,
      'Put that right, then run the command again: it goes on where it stopped.',
    );
  };

  /** Asks the hub. A refusal with a status in `allowed` is an answer: undefined. */
  const ask = <T>(
    what: string,
    request: Omit<WebRequest, 'headers' | 'body'> & { readonly headers?: Readonly<Record<string, string>> },
    schema: z.ZodType<T>,
    { body, allowed = () => false }: { body?: Content; allowed?: (answer: Answer) => boolean } = {},
  ): Promise<{ value: T; next: string | undefined } | undefined> =>
    web.persist(what, () =>
      web.client.exchange(
        {
          ...request,
          ...(body && { body: bodyOf(body) }),
          headers: { 'content-type': 'application/json', ...request.headers, ...own },
          follow: () => false,
        },
        async (answer) => {
          const passing = passingRefusal(answer.status, answer.headers);
          if (passing) throw passing;
          const text = await textOf(answer);
          if (allowed(answer)) return undefined;
          if (answer.status >= 300) throw refusal(what, answer, text);
          const { success, data } = schema.safeParse(parsed(text));
          if (!success) throw failed(what, 'it does not answer as a hub does');
          return { value: data, next: nextPage(answer) };
        },
      ),
    );

  /** The head of a branch; undefined if there is no such branch or no such model. */
  const headOf = async (name: string, missing: string): Promise<z.infer<typeof head> | undefined> => {
    const allowed = ({ status, headers }: Answer): boolean => status === 404 && headers['x-error-code'] === missing;
    return (await ask(location, { method: 'GET', url: `${api}/revision/${name}` }, head, { allowed }))?.value;
  };

  const create = async (): Promise<void> => {
    const [organization, name] = repo.split('/');
    const body = textContent(JSON.stringify({ type: 'model', name, organization, visibility: 'private' }));
    const url = `${endpoint}/api/repos/create`;
    await ask(location, { method: 'POST', url }, z.unknown(), { body, allowed: ({ status }) => status === 409 });
    if ((await headOf('main', 'RevisionNotFound'))?.private === false)
      throw new UploadFailedError(
        web.server.name,
        location,
        'it made the new model public',
        1,
        `Make it private at ${endpoint}/${repo}/settings, then run the command again.`,
      );
  };

  if (!(await headOf('main', 'RepoNotFound'))) await create();
  const base = (await headOf(branch, 'RevisionNotFound')) ? branch : 'main';

  /** Asks how the hub wants files: in the commit itself, or in its storage. It refuses who may not write. */
  const modesOf = async (files: ReadonlyArray<readonly [SentFile, Content]>): Promise<ReadonlyMap<string, string>> => {
    const wanted = await Promise.all(
      files.map(async ([{ file, bytes }, content]) => ({
        path: inRepo(file),
        size: bytes,
        sample: (await wholeOf(content, Math.min(bytes, SAMPLE_BYTES))).toString('base64'),
      })),
    );
    const body = textContent(JSON.stringify({ files: wanted }));
    const answer = await ask(location, { method: 'POST', url: `${api}/preupload/${base}` }, modes, { body });
    return new Map(answer?.value.files.map(({ path, uploadMode }) => [path, uploadMode]));
  };

  /** Asks what must be uploaded. An object without actions is there. */
  const objectsOf = async (files: readonly SentFile[]): Promise<Map<string, LfsObject>> => {
    const objects = files.map(({ sha256, bytes }) => ({ oid: sha256, size: bytes }));
    const body = textContent(
      JSON.stringify({ operation: 'upload', transfers: ['basic', 'multipart'], objects, hash_algo: 'sha256' }),
    );
    const url = `${endpoint}/${repo}.git/info/lfs/objects/batch`;
    const answer = await ask(location, { method: 'POST', url, headers: LFS_HEADERS }, batch, { body });
    return new Map(answer?.value.objects.map((it) => [it.oid, it]));
  };

  const send = async (sent: SentFile, content: Content): Promise<SentFile> => {
    const name = `${location}/${sent.file}`;
    let tries = 0;
    await web.persist(name, async (progress) => {
      progress(); // a file may take longer than a server's failures are borne
      tries++;
      const found = (await objectsOf([sent])).get(sent.sha256);
      if (!found) throw failed(name, 'it does not answer as git-lfs does');
      if (found.error) throw explain(name, found.error.code, found.error.message);
      const { upload, verify } = found.actions ?? {};
      if (!upload) return;
      const partBytes = Number(upload.header?.chunk_size);
      try {
        if (partBytes > 0) await sendParts(name, sent, content, upload, partBytes);
        else await store(name, upload.href, bodyOf(content), upload.header);
      } catch (error) {
        if (!(error instanceof ExpiredError)) throw error;
        throw tries < MOST_UPLOADS ? new TryAgain(error.message) : failed(name, `${tries} times, ${error.message}`);
      }
      if (!verify) return;
      const body = textContent(JSON.stringify({ oid: sent.sha256, size: sent.bytes }));
      const trusted = new URL(verify.href).origin === new URL(endpoint).origin;
      await transfer(name, {
        ...{ method: 'POST', url: verify.href, body: bodyOf(body), slow: true },
        headers: { ...LFS_HEADERS, ...verify.header, ...(trusted && own) },
      });
    });
    return sent;
  };

  const sendParts = async (
    name: string,
    sent: SentFile,
    content: Content,
    { href, header = {} }: z.infer<typeof action>,
    partBytes: number,
  ): Promise<void> => {
    const urls = Object.entries(header)
      .filter(([key]) => /^\d+$/.test(key))
      .sort(([a], [b]) => Number(a) - Number(b));
    if (urls.length !== Math.ceil(sent.bytes / partBytes)) throw failed(name, 'it names another number of parts');
    const parts: Array<{ partNumber: number; etag: string }> = [];
    await inLanes(PARTS_AT_ONCE, urls.entries(), async ([i, [, url]]) => {
      const etag = await store(name, url, bodyOf(content, i * partBytes, Math.min(sent.bytes, (i + 1) * partBytes)));
      parts[i] = { partNumber: i + 1, etag };
    });
    const body = bodyOf(textContent(JSON.stringify({ oid: sent.sha256, parts })));
    await transfer(name, { method: 'POST', url: href, headers: LFS_HEADERS, body, slow: true });
  };

  /** Sends bytes to a signed address and returns their ETag. */
  const store = async (
    name: string,
    url: string,
    body: ReturnType<typeof bodyOf>,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<string> => {
    const { etag = '' } = await transfer(name, { method: 'PUT', url, headers, body });
    options.onSent?.(body.bytes);
    return etag;
  };

  /** A request to the storage. It gets no token of the hub. */
  const transfer = async (name: string, request: WebRequest): Promise<Answer['headers']> => {
    if (endpoint.startsWith('https:') && !request.url.startsWith('https:'))
      throw failed(name, 'it names an address without encryption');
    return web.persist(name, () =>
      web.client.exchange({ ...request, follow: () => false }, async (answer) => {
        const { status, headers } = answer;
        const text = (await answer.bytes(64 * 1024))?.toString('utf8') ?? '';
        if (status < 300) return headers;
        const passing = passingRefusal(status, headers);
        if (passing) throw passing;
        // The address may have expired: all are asked for anew.
        if (status === 403 || status === 404 || status === 410)
          throw new ExpiredError(`its storage answers with status ${status}`);
        throw explain(name, status, errorIn(text) ?? '');
      }),
    );
  };

  const treeOf = (commit: string): Promise<TreeEntry[]> =>
    readTree(
      `${api}/tree/${commit}`,
      below,
      (url) =>
        ask(location, { method: 'GET', url }, listOf(treeEntry), {
          allowed: ({ status }) => below !== '' && status === 404,
        }),
      () => failed(location, 'its list of files goes on at another host'),
    );

  const publish = async ({ sent, small, replaces }: Publication): Promise<void> => {
    const mode = await modesOf(small);
    const [large, inline] = [[...sent], [] as Array<readonly [SentFile, Content]>];
    for (const [file, content] of small) {
      // Storage takes no empty files.
      if (mode.get(inRepo(file.file)) === 'lfs' && file.bytes > 0) large.push(await send(file, content));
      else inline.push([file, content]);
    }
    const gone = (await missing(large))[0];
    if (gone)
      throw new UploadFailedError(
        web.server.name,
        `${location}/${gone.file}`,
        'its storage has lost the file',
        1,
        'Run the command again: what belongs to it is made anew.',
      );
    if (base !== branch) {
      const body = textContent('{}');
      const allowed = ({ status }: Answer): boolean => status === 409;
      await ask(location, { method: 'POST', url: `${api}/branch/${branch}` }, z.unknown(), { body, allowed });
    }
    for (let tries = 1; ; tries++) {
      const parent = await headOf(branch, '');
      const tree = await treeOf(parent?.sha ?? branch);
      const contents = new Map(tree.map(({ path, oid, lfs }) => [relative(path), lfs?.oid ?? oid]));
      if (await hasAll(contents, large, inline)) return; // the answer to an earlier attempt was lost
      const files = new Set([...large, ...inline.map(([file]) => file)].map(({ file }) => file));
      const foreign = [...contents.keys()].find(
        (file) => /^[^/]+\.safetensors$/.test(file) && !files.has(file) && !replaces.includes(file),
      );
      if (foreign !== undefined) throw new UploadConflictError(location, `${foreign} was put there`);
      const lines: unknown[] = [
        {
          key: 'header',
          value: { summary: `Result of mobe-stream ${VERSION}`, description: '', parentCommit: parent?.sha },
        },
      ];
      for (const [{ file }, content] of inline)
        lines.push({
          key: 'file',
          value: { path: inRepo(file), encoding: 'base64', content: (await wholeOf(content)).toString('base64') },
        });
      for (const { file, sha256, bytes } of large)
        lines.push({ key: 'lfsFile', value: { path: inRepo(file), algo: 'sha256', oid: sha256, size: bytes } });
      for (const file of replaces)
        if (contents.has(file) && !files.has(file)) lines.push({ key: 'deletedFile', value: { path: inRepo(file) } });
      const body = textContent(lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
      const request = { method: 'POST' as const, url: `${api}/commit/${branch}`, slow: true };
      const moved = ({ status }: Answer): boolean => tries < MOST_COMMITS && (status === 409 || status === 412);
      const headers = { 'content-type': 'application/x-ndjson' };
      if (await ask(location, { ...request, headers }, z.unknown(), { body, allowed: moved })) return;
    }
  };

  const missing = async (files: readonly SentFile[]): Promise<SentFile[]> => {
    const lost: SentFile[] = [];
    for (let i = 0; i < files.length; i += OBJECTS_AT_ONCE) {
      const some = files.slice(i, i + OBJECTS_AT_ONCE);
      const objects = await objectsOf(some);
      lost.push(...some.filter(({ sha256 }) => objects.get(sha256)?.actions || objects.get(sha256)?.error));
    }
    return lost;
  };

  // It refuses who may not write, before hours of work.
  const sample = textContent('{}');
  await modesOf([[{ file: 'config.json', bytes: sample.bytes, sha256: '' }, sample]]);

  return {
    list: async () => (await treeOf(base)).map(({ path }) => relative(path)),
    // The old result stays until the commit.
    begin: async () => {},
    send,
    async held(files) {
      const lost = await missing(files);
      return files.filter((file) => !lost.includes(file));
    },
    publish,
    // Files without a commit are seen by nobody, and the hub removes them.
    discard: async () => {},
    close: () => web.client.close(),
  };
}

/** A signed address is not valid any more, so trying it again is of no use. */
class ExpiredError extends Error {}

/** Whether a repository has all these files with their content: its hashes, by file. */
async function hasAll(
  contents: ReadonlyMap<string, string>,
  large: readonly SentFile[],
  inline: ReadonlyArray<readonly [SentFile, Content]>,
): Promise<boolean> {
  if (!large.every(({ file, sha256 }) => contents.get(file) === sha256)) return false;
  for (const [{ file, bytes }, content] of inline)
    if (contents.get(file) !== (await hashOf(content, 'sha1', 0, bytes, `blob ${bytes}\0`))) return false;
  return true;
}

/** The message in the body of a refusal: the hub's API has `error`, git-lfs `message`. */
function errorIn(text: string): string | undefined {
  const value = parsed(text);
  if (typeof value !== 'object' || value === null) return undefined;
  const { error, message } = value as { error?: unknown; message?: unknown };
  return [error, message].find((it) => typeof it === 'string');
}
