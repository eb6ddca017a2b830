/** Opens the place that a conversion writes to: a location, opened according to its scheme, or an object of the caller. */
import { UnknownSchemeError } from '../../src/errors.js';
import { PIPE, publicLocation, schemeOf } from '../../src/location.js';
import type { Output } from '../../src/output/output.js';
import { pipeOutput, remoteOutput } from '../machines/remote-output.js';
import type { RunOptions } from '../run-options.js';
import { type OpenedOutput, type OutputRequest, openFolder } from './open-folder.js';
import { uploadOutput } from './open-upload.js';

/** A location, or an output object. An object takes one result: the run commits or abandons it. */
export type OutputPlace = string | Output;

/** Opens an output at a location. */
export type OpenOutput = (location: string, request: OutputRequest, run: RunOptions) => Promise<OpenedOutput>;

const schemes = new Map<string, OpenOutput>([
  [PIPE, pipeOutput],
  ['ws', remoteOutput],
  ['wss', remoteOutput],
  ['hf', uploadOutput],
  ['s3', uploadOutput],
]);

/** Registers `open` for locations of a scheme, for example "ws" for `ws://…`. It replaces an earlier one. */
export function registerOutput(scheme: string, open: OpenOutput): void {
  schemes.set(scheme, open);
}

/** Opens the place. Throws `UnknownSchemeError`, and the errors of the scheme's own function. */
export async function openOutput(place: OutputPlace, request: OutputRequest, run: RunOptions): Promise<OpenedOutput> {
  if (typeof place !== 'string') return { output: place };
  const scheme = schemeOf(place);
  if (scheme === undefined) return openFolder(place, request, run);
  const open = schemes.get(scheme);
  if (!open) throw new UnknownSchemeError(publicLocation(place), [...schemes.keys()], 'write');
  return open(place, request, run);
}

/** The name of a place in messages. */
export const outputName = (place: OutputPlace): string =>
  typeof place === 'string' ? place : 'the output it was given';
