/** Locations: names of places to read from or write to. */
import { basename, join, resolve } from 'node:path';

/** The location of a pipe: standard output for writing, standard input for reading. */
export const PIPE = '-';

const SCHEME = /^([a-z][a-z0-9+.-]*):\/\//i;

/** The scheme of a location in lower case, e.g. "ws" for `ws://host:port/`. That of a pipe is "-". A local path has none. */
export const schemeOf = (location: string): string | undefined =>
  location === PIPE ? PIPE : SCHEME.exec(location)?.[1]?.toLowerCase();

/** Whether a location is a local path. */
export const isPath = (location: string): boolean => schemeOf(location) === undefined;

/** The normal form of a location: an absolute path, or a URL without a slash at its end. */
export const normaliseLocation = (location: string): string =>
  isPath(location) ? resolve(location) : location.replace(/\/+$/, '');

/**
 * A location in normal form without its secrets, as files, messages and records name it: `https://user:password@host/a/?key=1`
 * becomes `https://host/a`. Passwords are sent in headers, and queries with each request.
 */
export function publicLocation(location: string): string {
  const normal = normaliseLocation(location);
  if (isPath(normal) || schemeOf(normal) === PIPE) return normal;
  const plain = /^https?:/i.test(normal) ? normal.replace(/[?#].*$/s, '').replace(/\/+$/, '') : normal;
  return plain.replace(/^((?:https?|wss?):\/\/)[^/]*@/i, '$1').replace(/^(\w+:\/\/)[^/]*:[^/]*@/, '$1');
}

/**
 * A model's name for people: a folder's name, or `org/name` of the hub.
 * @param location in normal form, without secrets
 */
export function modelName(location: string): string {
  const hub = /^hf:\/\/([^/@]+\/[^/@]+)/i.exec(location)?.[1];
  if (hub !== undefined) return hub;
  const name = location.slice(location.lastIndexOf('/') + 1);
  try {
    return isPath(location) ? basename(location) : decodeURIComponent(name);
  } catch {
    return name;
  }
}

/** The location of a file in a folder. `folder` must be in normal form. */
export const fileIn = (folder: string, path: string): string =>
  isPath(folder) ? join(folder, path) : `${folder}/${path}`;
