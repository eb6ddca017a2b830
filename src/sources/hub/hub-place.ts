/**
 * A model on the Hugging Face hub. The revision is resolved to a commit once, and everything is read at that commit. Files are
 * asked for at `/<repo>/resolve/<commit>/<path>`, which redirects to a storage host with a signed address. That address is used
 * for all ranges of the file until it expires, so that a run needs few requests to the hub itself, which limits their rate.
 */
import { z } from 'zod';
import { isPlainPath } from '../../checkpoint/plain-path.js';
import {
  BadCredentialsError,
  GatedModelError,
  type MobeError,
  NoAccessError,
  NotThereError,
  OfflineError,
  RenamedModelError,
  ServerFailedError,
  SourceChangedError,
} from '../../errors.js';
import { listOf } from '../../list-of.js';
import { encodePath } from '../web/encode-path.js';
import { passingRefusal, TryAgain } from '../web/try-again.js';
import { textOf, type Web } from '../web/web.js';
import { type Answer, redirectTarget } from '../web/web-client.js';
import type { Link, WebFile, WebListing, WebPlace } from '../web/web-place.js';
import { COMMIT, cachedCommit, cachedFiles, keepFile, noteCommit, withLocalCopies } from './hub-cache.js';
import type { HubLocation } from './hub-location.js';
import type { HubSettings } from './hub-settings.js';
import { readTree, treeEntry } from './hub-tree.js';

const modelInfo = z.object({ sha: z.string().regex(COMMIT) });

/** @param keeps whether files that are read are kept in the cache */
export function hubPlace(wanted: HubLocation, settings: HubSettings, web: Web, keeps = false): WebPlace {
  const { location, repo, revision, below } = wanted;
  const { endpoint, token, cache, offline } = settings;
  const host = new URL(endpoint).origin;
  const headers: Record<string, string> = token ? { authorization: `Bearer ${token.value}` } : {};
  const api = `${endpoint}/api/models/${repo}`;
  const links = new Map<string, Promise<Link>>();
  let commit = '';
  /** The names of contents in git, by path. */
  const contents = new Map<string, string>();

  /** Asks the API. Redirects to another repository are not followed. */
  const ask = <T>(url: string, schema: z.ZodType<T>): Promise<{ value: T; next: string | undefined }> =>
    web.persist(location, () =>
      web.client.exchange({ method: 'GET', url, headers, follow: within(repo) }, async (answer) => {
        if (answer.status !== 200) throw passingRefusal(answer.status, answer.headers) ?? (await refusal(answer));
        const { success, data } = schema.safeParse(parsed(await textOf(answer)));
        if (!success)
          throw new ServerFailedError(
            web.server.name,
            location,
            'it does not answer as a hub does',
            1,
            'Check HF_ENDPOINT.',
          );
        return { value: data, next: nextPage(answer) };
      }),
    );

  const refusal = async (answer: Answer, file?: WebFile): Promise<MobeError> => {
    const { status, headers: told } = answer;
    const moved = redirectTarget(answer);
    const renamed = moved && repoIn(moved.pathname);
    if (renamed) return new RenamedModelError(location, location.replace(repo, renamed));
    const code = told['x-error-code'];
    const message = String(told['x-error-message'] ?? '');
    if (code === 'GatedRepo') return new GatedModelError(location, `${endpoint}/${repo}`, token?.source);
    if (status === 401 && token && /invalid (?:credentials|username|user token)/i.test(message))
      return new BadCredentialsError(
        web.server.name,
        token.source,
        `Make a token at ${endpoint}/settings/tokens, or unset it: public models need none.`,
      );
    if (code === 'RevisionNotFound')
      return new NotThereError(location, `${repo} has no revision "${revision}"`, 'Name a branch, a tag or a commit.');
    if (code === 'EntryNotFound' || (file && status === 404))
      return new NotThereError(
        file ? `${location}/${file.path}` : location,
        file ? 'the hub lists it but does not have it' : `${repo} has no folder "${below}"`,
        `Look at ${endpoint}/${repo}.`,
      );
    // The hub answers 401 for missing and for private repositories, so that it does not tell them apart.
    if (code === 'RepoNotFound' || status === 404 || status === 401)
      return new NotThereError(
        location,
        `the hub has no model ${repo}, or it is private and ${token ? `the token in ${token.source} may not read it` : 'no token was given'}`,
        `Check the name${token ? ' and the permissions of the token' : ', or give a token in HF_TOKEN'}.`,
      );
    if (status === 403)
      return new NoAccessError(
        location,
        /disabled/i.test(message) ? 'the hub has disabled it' : 'the hub forbids it (status 403)',
        token ? `Check the permissions of the token in ${token.source}.` : 'Give a token in HF_TOKEN.',
      );
    return new ServerFailedError(web.server.name, location, `it answers with status ${status}`, 1);
  };

  const list = async (): Promise<WebListing> => {
    if (offline) return listCached();
    const info = await ask(`${api}/revision/${encodeURIComponent(revision)}`, modelInfo);
    commit = info.value.sha;
    const entries = await readTree(
      `${api}/tree/${commit}`,
      below,
      (url) => ask(url, listOf(treeEntry)),
      () => new ServerFailedError(web.server.name, location, 'its list of files goes on at another host', 1),
    );
    const files: WebFile[] = [];
    for (const { path, oid, size = 0, lfs } of entries) {
      const relative = below === '' ? path : path.slice(below.length + 1);
      contents.set(relative, lfs?.oid ?? oid);
      if (isPlainPath(path)) files.push({ path: relative, bytes: lfs?.size ?? size, version: 0, sha256: lfs?.oid });
    }
    if (keeps) await noteCommit(cache, wanted, commit);
    return { files: await withLocalCopies(cache, wanted, commit, files), commit };
  };

  const listCached = async (): Promise<WebListing> => {
    const found = await cachedCommit(cache, wanted);
    if (found === undefined)
      throw new OfflineError(
        location,
        `HF_HUB_OFFLINE is set, and ${cache} does not have revision "${revision}" of it`,
      );
    const files = await cachedFiles(cache, wanted, found);
    if (files.length === 0) throw new OfflineError(location, `HF_HUB_OFFLINE is set, and ${cache} has no file of it`);
    return { files, commit: found };
  };

  /** Finds where the bytes of a file are, and checks that they are those of the list. */
  const resolve = (file: WebFile): Promise<Link> => {
    const path = below === '' ? file.path : `${below}/${file.path}`;
    const url = `${endpoint}/${repo}/resolve/${commit}/${encodePath(path)}`;
    const follow = (target: URL): boolean => target.origin === host;
    return web.persist(`${location}/${file.path}`, () =>
      web.client.exchange({ method: 'HEAD', url, headers, follow }, async (answer) => {
        const target = redirectTarget(answer);
        if (answer.status !== 200 && !target)
          throw passingRefusal(answer.status, answer.headers) ?? (await refusal(answer, file));
        await answer.bytes(0);
        check(answer, file);
        if (!target) return { url: answer.url.href, headers };
        if (host.startsWith('https:') && target.protocol !== 'https:')
          throw new TryAgain(`it redirects to ${target.protocol}//${target.host}`);
        return { url: target.href, headers: {}, expires: true };
      }),
    );
  };

  const check = ({ headers: told }: Answer, file: WebFile): void => {
    const name = `${location}/${file.path}`;
    const size = told['x-linked-size'];
    if (size !== undefined && Number(size) !== file.bytes)
      throw new SourceChangedError(name, `it had ${file.bytes} bytes, now ${size}`);
    const now = told['x-repo-commit'];
    if (now !== undefined && now !== commit)
      throw new SourceChangedError(name, `commit ${commit} was asked for, and ${now} is sent`);
    const etag = unquoted(told['x-linked-etag']);
    if (file.sha256 !== undefined && etag !== undefined && etag !== file.sha256)
      throw new SourceChangedError(name, `its hash was ${file.sha256}, now ${etag}`);
  };

  return {
    list,
    link(file) {
      let link = links.get(file.path);
      if (!link) {
        link = resolve(file);
        links.set(file.path, link);
        link.catch(() => links.delete(file.path));
      }
      return link;
    },
    forgetLink: (file) => void links.delete(file.path),
    refusal,
    ...(keeps &&
      !offline && {
        keep: (file, fetch) => keepFile(cache, wanted, commit, file, contents.get(file.path) as string, fetch),
      }),
  };
}

/** Whether a redirect stays within a repository. */
const within =
  (repo: string) =>
  (target: URL): boolean => {
    const other = repoIn(target.pathname);
    return other === undefined || other === repo;
  };

/** The repository of an address of the hub. */
export const repoIn = (pathname: string): string | undefined =>
  /\/api\/models\/([^/]+\/[^/]+)(?:\/|$)/.exec(pathname)?.[1] ?? /^\/([^/]+\/[^/]+)\/resolve\//.exec(pathname)?.[1];

/** The address of the next page (RFC 8288). */
export const nextPage = ({ headers }: Answer): string | undefined =>
  /<([^>]+)>\s*;\s*rel="?next"?/.exec([headers.link ?? ''].flat().join(','))?.[1];

const unquoted = (etag: string | string[] | undefined): string | undefined =>
  typeof etag === 'string' ? etag.replace(/^(?:W\/)?"?|"?$/g, '') : undefined;

export function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
