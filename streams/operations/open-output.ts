/** Opens the place that a conversion writes to: a location, whose scheme says how, or an object that is handed in. */
import { UnknownSchemeError } from '../../src/errors.js';
import { PIPE, schemeOf } from '../../src/location.js';
import type { Output } from '../../src/output/output.js';
import { pipeOutput, remoteOutput } from '../machines/remote-output.js';
import type { RunOptions } from '../run-options.js';
import { type OpenedOutput, type OutputRequest, openFolder } from './open-folder.js';

/** A location, or an output of any kind. An object takes one result: it is committed or abandoned by the run it is given to. */
export type OutputPlace = string | Output;

export type OpenOutput = (location: string, request: OutputRequest, run: RunOptions) => Promise<OpenedOutput>;

const schemes = new Map<string, OpenOutput>([
  [PIPE, pipeOutput],
  ['ws', remoteOutput],
  ['wss', remoteOutput],
]);

/** From now on, locations of this scheme ("ws" for `ws://…`) are opened by `open`. */
export function registerOutput(scheme: string, open: OpenOutput): void {
  schemes.set(scheme, open);
}

/** Throws `UnknownSchemeError`, and what the place itself throws. */
export async function openOutput(place: OutputPlace, request: OutputRequest, run: RunOptions): Promise<OpenedOutput> {
  if (typeof place !== 'string') return { output: place };
  const scheme = schemeOf(place);
  if (scheme === undefined) return openFolder(place, request, run);
  const open = schemes.get(scheme);
  if (!open) throw new UnknownSchemeError(place, [...schemes.keys()]);
  return open(place, request, run);
}

/** A place as people are told it. */
export const outputName = (place: OutputPlace): string =>
  typeof place === 'string' ? place : 'the output it was given';
