/** The files of a commit, as the hub lists them. */
import { z } from 'zod';
import type { MobeError } from '../../errors.js';
import { encodePath } from '../web/encode-path.js';

export const treeEntry = z.object({
  type: z.string(),
  path: z.string(),
  /** The name of the content in git. */
  oid: z.string(),
  size: z.int().nonnegative().optional(),
  /** The content in the storage for large files. */
  lfs: z.object({ oid: z.string().regex(/^[0-9a-f]{64}$/), size: z.int().nonnegative() }).optional(),
});
export type TreeEntry = z.infer<typeof treeEntry>;

/** A page of the list, and the address of the next one. */
export interface TreePage {
  readonly value: TreeEntry[];
  readonly next: string | undefined;
}

/**
 * Reads all pages of a list.
 * @param tree its address at the hub
 * @param below the folder whose files are wanted; empty for all
 * @param ask asks for a page; undefined if there is no such folder
 * @param foreign makes the error for a page at another host, to which no token may go
 */
export async function readTree(
  tree: string,
  below: string,
  ask: (url: string) => Promise<TreePage | undefined>,
  foreign: () => MobeError,
): Promise<TreeEntry[]> {
  const host = new URL(tree).origin;
  const entries: TreeEntry[] = [];
  let url: string | undefined = `${tree}${below === '' ? '' : `/${encodePath(below)}`}?recursive=true`;
  while (url !== undefined) {
    const page: TreePage | undefined = await ask(url);
    entries.push(...(page?.value ?? []).filter(({ type }) => type === 'file'));
    const next: URL | undefined = page?.next === undefined ? undefined : new URL(page.next, host);
    if (next && next.origin !== host) throw foreign();
    url = next?.href;
  }
  return entries;
}
