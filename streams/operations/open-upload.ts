/** Opens a place on the Hugging Face hub or in S3 for a result. */
import { setMaxListeners } from 'node:events';
import { isHidden } from '../../src/checkpoint/plain-path.js';
import { describeDifference, readReport, replaceable } from '../../src/conversion/existing-output.js';
import { UnknownSchemeError } from '../../src/errors.js';
import { nodeFileSystem } from '../../src/file-system.js';
import { normaliseLocation, publicLocation, schemeOf } from '../../src/location.js';
import { notEmpty } from '../../src/output/folder-checks.js';
import { OutputFolder } from '../../src/output/output-folder.js';
import { findUnfinished } from '../../src/output/unfinished-run.js';
import type { Sink, SinkOptions } from '../../src/sinks/sink.js';
import { uploadFolder } from '../../src/sinks/upload-folder.js';
import { parseHubLocation } from '../../src/sources/hub/hub-location.js';
import { hubSettings } from '../../src/sources/hub/hub-settings.js';
import { openFiles } from '../../src/sources/open-source.js';
import { parseS3Location } from '../../src/sources/s3/s3-files.js';
import { s3Settings } from '../../src/sources/s3/s3-settings.js';
import { workFolder } from '../compute/state-folder.js';
import type { RunOptions } from '../run-options.js';
import type { OpenedOutput, OutputRequest } from './open-folder.js';

/**
 * Opens a place for a result. Shards wait in a folder of this machine until they are sent, and an interrupted run goes on from
 * there. Throws before any work if nothing can be written to the place, or if it has other files.
 */
export async function uploadOutput(
  place: string,
  { wanted, neededBytes, heldBytes = neededBytes, identity: run }: OutputRequest,
  { force = false, fileSystem: fs, peers, web, signal, onProgress }: RunOptions,
): Promise<OpenedOutput> {
  const location = normaliseLocation(place);
  // A copy (`mobe stream`) has no identity and could not go on.
  if (!run) throw new UnknownSchemeError(publicLocation(location), ['ws', 'wss', '-'], 'write');
  const stop = new AbortController();
  setMaxListeners(0, stop.signal); // each request is one
  signal?.addEventListener('abort', () => stop.abort(), { once: true });
  let rest: { readonly bytes: number; sent: number } | undefined;
  const onSent = (bytes: number): void => {
    if (!rest) return;
    rest.sent = Math.min(rest.bytes, rest.sent + bytes);
    onProgress?.({ kind: 'bytes', bytes: rest.sent });
  };
  const onRest = (bytes: number): void => {
    rest = { bytes, sent: 0 };
    onProgress?.({ kind: 'phase', phase: 'send', groups: 0, bytes });
  };
  const sink = await openSink(location, { peers, web, signal: stop.signal, onSent });
  try {
    const folder = workFolder(location);
    const options = { run, ...(fs && { fs }) };
    const held = (await sink.list()).filter((path) => !isHidden(path));
    const names = [...new Set(held.map((path) => path.split('/')[0] as string))];
    const report = held.length > 0 ? await readReport(location, openFiles(location, { peers, web }).files) : undefined;
    const unfinished = force ? undefined : await findUnfinished(folder, fs ?? nodeFileSystem).catch(() => undefined);
    if (
      !force &&
      report &&
      describeDifference(report, wanted) === undefined &&
      report.files.every((file) => held.includes(file))
    ) {
      // A run that was killed just after its end has left its files here.
      if (unfinished) await (await OutputFolder.create(folder, { ...options, neededBytes: 0, force: true })).abandon();
      sink.close();
      return { done: report };
    }
    // When a run goes on, the files that are there may be its own.
    const replaced = unfinished ? names : replaceable(location, names, report, wanted, force);
    const foreign = names.filter((name) => !replaced.includes(name));
    if (foreign.length > 0) throw notEmpty(location, foreign, force);
    const output = await OutputFolder.create(folder, { ...options, neededBytes: heldBytes, force });
    const replaces = unfinished ? [] : held;
    return { output: uploadFolder(output, sink, { replaces, stop, onRest, fs }) };
  } catch (error) {
    sink.close();
    throw error;
  }
}

async function openSink(location: string, options: SinkOptions): Promise<Sink> {
  const env = options.web?.env ?? process.env;
  if (schemeOf(location) === 's3') {
    const { openS3Sink } = await import('../../src/sinks/s3-sink.js');
    return openS3Sink(parseS3Location(location), await s3Settings(env), options);
  }
  const { openHubSink } = await import('../../src/sinks/hub-sink.js');
  return openHubSink(parseHubLocation(location), await hubSettings(env), options);
}
