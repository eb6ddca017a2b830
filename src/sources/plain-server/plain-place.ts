/**
 * A checkpoint on a plain file server, which does not list its files. Its shards are named by its index, other files by the
 * manifest of a result or by its configs, and the rest are tried by their usual names.
 */
import { CONFIG_FILE, INDEX_FILE, SINGLE_FILE } from '../../checkpoint/file-names.js';
import { isPlainPath } from '../../checkpoint/plain-path.js';
import { readIndex } from '../../checkpoint/read-index.js';
import { parseJsonObject, type WholeFiles } from '../../checkpoint/read-json.js';
import { BadCredentialsError, type MobeError, NoAccessError, NotThereError, ServerFailedError } from '../../errors.js';
import { inLanes } from '../../in-lanes.js';
import { MANIFEST_FILE } from '../../output/manifest.js';
import { encodePath } from '../web/encode-path.js';
import { fetchRange, type Versions } from '../web/fetch-range.js';
import { passingRefusal } from '../web/try-again.js';
import { versionOf } from '../web/version-of.js';
import type { Web } from '../web/web.js';
import type { Answer, WebRequest } from '../web/web-client.js';
import type { Link, WebFile, WebListing, WebPlace } from '../web/web-place.js';

/** Names of files beside the weights, as publishers use them. */
const USUAL_NAMES: readonly string[] = [
  ...['generation_config.json', 'configuration.json', 'quantize_config.json', 'hf_quant_config.json', 'recipe.yaml'],
  ...['tokenizer.json', 'tokenizer_config.json', 'tokenizer.model', 'special_tokens_map.json', 'added_tokens.json'],
  ...['vocab.json', 'merges.txt', 'tiktoken.model', 'tekken.json', 'chat_template.jinja', 'chat_template.json'],
  ...['preprocessor_config.json', 'processor_config.json', 'video_preprocessor_config.json'],
  ...['README.md', 'LICENSE', 'LICENSE.md', 'LICENSE.txt', 'NOTICE', 'USE_POLICY.md', 'mobe.json'],
];
/** Requests for names that may not exist. */
const PROBES_AT_ONCE = 8;
/** Modelling files import each other. */
const MOST_MODULES = 64;

/**
 * @param folder the location without secrets
 * @param address where the files are; a query is sent with every request
 */
export function plainPlace(
  folder: string,
  address: URL,
  headers: Readonly<Record<string, string>>,
  web: Web,
): WebPlace {
  const versions: Versions = new Map();
  const linkTo = (path: string): Link => {
    const url = new URL(address);
    url.pathname = `${url.pathname.replace(/\/+$/, '')}/${encodePath(path)}`;
    return { url: url.href, headers };
  };

  /** Finds a file's size and version; undefined if it is not there. An expected file must not be forbidden. */
  const probe = async (path: string, expected = path === CONFIG_FILE): Promise<WebFile | undefined> => {
    const { url } = linkTo(path);
    const found = await look({ method: 'HEAD', url, headers }, path, expected);
    // Some servers do not answer HEAD, or tell no length.
    return found === 'unknown'
      ? known(await look({ method: 'GET', url, headers: { ...headers, range: 'bytes=0-0' } }, path, expected), path)
      : found;
  };
  const known = (found: WebFile | 'unknown' | undefined, path: string): WebFile | undefined => {
    if (found === 'unknown')
      throw new ServerFailedError(web.server.name, `${folder}/${path}`, 'it does not tell the length of the file', 1);
    return found;
  };
  const look = (request: WebRequest, path: string, expected: boolean): Promise<WebFile | 'unknown' | undefined> =>
    web.persist(`${folder}/${path}`, () =>
      web.client.exchange(request, async (answer) => {
        const { status, headers: told } = answer;
        await answer.bytes(1024);
        const passing = passingRefusal(status, told);
        if (passing) throw passing;
        if (status === 404 || status === 410) return undefined;
        // Storage that may not be listed answers 403 for what is not there.
        if (status === 403 && !expected) return undefined;
        if (status === 401 || status === 403) throw await refusal(answer);
        // Servers of web pages answer every address with a page.
        if (/^text\/html/.test(told['content-type'] ?? '') && !/\.(?:html|md)$/.test(path)) return undefined;
        const bytes =
          status === 206
            ? /\/(\d+)$/.exec(told['content-range'] ?? '')?.[1]
            : status === 200
              ? told['content-length']
              : undefined;
        return bytes === undefined ? 'unknown' : { path, bytes: Number(bytes), version: versionOf(told) };
      }),
    );

  const refusal = async ({ status }: Answer, file?: WebFile): Promise<MobeError> => {
    const name = file ? `${folder}/${file.path}` : folder;
    if (status === 403 && address.search !== '')
      return new NoAccessError(
        name,
        `${web.server.name} forbids it (status 403)`,
        'Check what stands behind the "?" of the address: a signature may be wrong, or have expired.',
      );
    if (status === 401 || status === 403)
      return headers.authorization === undefined
        ? new NoAccessError(
            name,
            `${web.server.name} asks for a password or forbids it (status ${status})`,
            'Give them in the address: https://user:password@host/path/.',
          )
        : new BadCredentialsError(web.server.name, 'the address', 'Correct the user and the password there.');
    if (status === 404 || status === 410)
      return new NotThereError(name, `the server answers with status ${status}`, 'Check the address.');
    return new ServerFailedError(web.server.name, name, `it answers with status ${status}`, 1);
  };

  const place: WebPlace = {
    async list() {
      return listFiles(folder, { probe, place, web, versions });
    },
    link: async ({ path }) => linkTo(path),
    refusal,
    async current(file) {
      return (await probe(file.path, true)) ?? { bytes: 0, version: 0 };
    },
  };
  return place;
}

interface Finder {
  readonly probe: (path: string) => Promise<WebFile | undefined>;
  readonly place: WebPlace;
  readonly web: Web;
  readonly versions: Versions;
}

async function listFiles(folder: string, { probe, place, web, versions }: Finder): Promise<WebListing> {
  const found = new Map<string, WebFile>();
  const read = new Map<string, Uint8Array>();
  const tried = new Set<string>();
  const look = (names: Iterable<string>): Promise<void> =>
    inLanes(PROBES_AT_ONCE, names, async (path) => {
      if (tried.has(path) || !isPlainPath(path)) return;
      tried.add(path);
      const file = await probe(path);
      if (file) found.set(path, file);
    });
  /** The content of a file; undefined if it is not there. */
  const contentOf = async (path: string): Promise<Uint8Array | undefined> => {
    const known = read.get(path);
    if (known) return known;
    await look([path]);
    const file = found.get(path);
    if (!file) return undefined;
    const bytes = new Uint8Array(file.bytes);
    await fetchRange(web, place, versions, { file, name: `${folder}/${path}` }, 0, bytes);
    read.set(path, bytes);
    return bytes;
  };
  const textOf = async (path: string): Promise<string> => new TextDecoder().decode(await contentOf(path));

  if (!(await contentOf(CONFIG_FILE))) return { files: [] };
  await look([INDEX_FILE, SINGLE_FILE, MANIFEST_FILE, ...USUAL_NAMES]);
  if (found.has(INDEX_FILE)) {
    await contentOf(INDEX_FILE);
    const index = await readIndex(`${folder}/${INDEX_FILE}`, contents(folder, read));
    await look(index.placed.keys());
  }
  if (found.has(MANIFEST_FILE)) await look(filesOf(await textOf(MANIFEST_FILE)));
  const modules = [CONFIG_FILE, 'tokenizer_config.json', 'processor_config.json', 'preprocessor_config.json'];
  const code: string[] = [];
  for (const path of modules) if (found.has(path)) code.push(...ownModules(await textOf(path), path));
  for (let i = 0; i < code.length && i < MOST_MODULES; i++) {
    const imported = relativeImports(await textOf(code[i] as string));
    code.push(...imported.filter((it) => !code.includes(it)));
  }
  return { files: [...found.values()], read };
}

/** Files that are in memory. */
function contents(folder: string, read: ReadonlyMap<string, Uint8Array>): WholeFiles {
  const bytesOf = (file: string): Uint8Array => read.get(file.slice(folder.length + 1)) as Uint8Array;
  return {
    size: async (file) => bytesOf(file).byteLength,
    readRange: async ({ file, start, end }) => new Uint8Array(bytesOf(file).subarray(start, end)),
  };
}

/** The files that a manifest names. It is checked when it is used. */
const filesOf = (manifest: string): string[] =>
  [...manifest.matchAll(/^\{"file": ("(?:[^"\\]|\\.)*")/gm)].map(([, name = '""']) => JSON.parse(name) as string);

/** The modules of a config's `auto_map`, as files. Those of other repositories ("repo--module.Class") are not among them. */
function ownModules(text: string, path: string): string[] {
  const { auto_map: map } = parseJsonObject(text, path) as { auto_map?: unknown };
  const names = Object.values(map && typeof map === 'object' ? map : {}).flat();
  return names.flatMap((it) => (typeof it === 'string' && !it.includes('--') ? [`${it.split('.')[0]}.py`] : []));
}

/** Python modules beside a file that it imports. */
const relativeImports = (code: string): string[] =>
  [...code.matchAll(/^\s*from\s+\.(\w+)\s+import/gm)].map(([, name]) => `${name}.py`);
