/** Locations: how people name a place to read from or write to. */
import { join, resolve } from 'node:path';

/** The location of a pipe: standard output where something is written, standard input where it is read. */
export const PIPE = '-';

const SCHEME = /^([a-z][a-z0-9+.-]*):\/\//i;

/** The scheme of a location, in lower case: "ws" of `ws://host:port/`. A pipe's is "-"; a path of this machine has none. */
export const schemeOf = (location: string): string | undefined =>
  location === PIPE ? PIPE : SCHEME.exec(location)?.[1]?.toLowerCase();

/** The location is a path of this machine. */
export const isPath = (location: string): boolean => schemeOf(location) === undefined;

/** A location as it is kept and told: an absolute path, or a URL without a slash at its end. */
export const normaliseLocation = (location: string): string =>
  isPath(location) ? resolve(location) : location.replace(/\/+$/, '');

/** A file in a folder, whose name is normalised. */
export const fileIn = (folder: string, path: string): string =>
  isPath(folder) ? join(folder, path) : `${folder}/${path}`;
