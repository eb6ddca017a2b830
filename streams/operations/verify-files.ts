/** The checks of a verification that need no tensor data: names, dtypes, shapes, index, config and side files. */
import { readFile } from 'node:fs/promises';
import { isDeepStrictEqual } from 'node:util';
import { dtypeContradictions } from '../../src/checkpoint/dtype-claims.js';
import type { TensorSpec } from '../../src/checkpoint/header.js';
import { type Checkpoint, CONFIG_FILE, INDEX_FILE, readJsonObject } from '../../src/checkpoint/open-checkpoint.js';
import { parsePythonJson } from '../../src/checkpoint/python-json.js';
import { listSideFiles } from '../../src/checkpoint/side-files.js';
import { QUANT_CONFIG_FILE } from '../../src/conversion/quantisation-changes.js';
import { fileIn } from '../../src/location.js';
import type { ModellingFile } from '../../src/models/modelling-files.js';
import { type ConfigChanges, editConfig } from '../../src/models/native.js';
import type { Files } from '../../src/sources/files.js';

/** Compares names, dtypes and shapes with those expected. Adds to `problems`. */
export function compareSpecs(expected: readonly TensorSpec[], result: Checkpoint, problems: string[]): void {
  const left = new Set(result.tensors.keys());
  for (const { name, dtype, shape } of expected) {
    const tensor = result.tensors.get(name);
    left.delete(name);
    if (!tensor) problems.push(`tensor "${name}" is missing`);
    else if (tensor.dtype !== dtype || String(tensor.shape) !== String(shape)) {
      problems.push(
        `tensor "${name}" in ${tensor.file} is ${tensor.dtype} [${tensor.shape}], expected ${dtype} [${shape}]`,
      );
    }
  }
  for (const name of left) problems.push(`tensor "${name}" should not be there`);
}

/** Compares the index's total size with `tensorBytes`. Adds to `problems`. */
export async function checkIndex(result: Checkpoint, tensorBytes: number, problems: string[]): Promise<void> {
  if (result.shards.length === 1) return;
  const { metadata } = await readJsonObject(fileIn(result.folder, INDEX_FILE), result.files);
  const total = (metadata as { total_size?: unknown } | undefined)?.total_size;
  if (total !== tensorBytes)
    problems.push(`${INDEX_FILE} says total_size ${String(total)}, the tensors have ${tensorBytes} bytes`);
}

/** Checks that the result's config is the source's config with these changes. Adds to `problems`. */
export function checkConfig(source: Checkpoint, result: Checkpoint, changes: ConfigChanges, problems: string[]): void {
  const expected = parsePythonJson(editConfig(source.configText, changes)) as Record<string, unknown>;
  for (const key of new Set([...Object.keys(expected), ...Object.keys(result.config)])) {
    if (!isDeepStrictEqual(expected[key], result.config[key])) {
      problems.push(
        `${CONFIG_FILE}: "${key}" is ${JSON.stringify(result.config[key])}, expected ${JSON.stringify(expected[key])}`,
      );
    }
  }
}

/** Checks that the result's config files agree with its tensors' dtypes. Faults that the source has too are not reported. */
export async function checkDtypes(source: Checkpoint, result: Checkpoint, problems: string[]): Promise<void> {
  const contradictions = async (checkpoint: Checkpoint): Promise<string[]> => {
    const held = (await listSideFiles(checkpoint)).find(({ target }) => target === QUANT_CONFIG_FILE);
    return dtypeContradictions(checkpoint, held && (await readJsonObject(held.source, checkpoint.files)));
  };
  const own = await contradictions(source);
  problems.push(...(await contradictions(result)).filter((it) => !own.includes(it)));
}

/**
 * Checks that the result has the source's side files and the modelling files, byte for byte. Side files that the conversion edits
 * must have the edited text. Adds to `problems`. Returns the number of files that were compared.
 */
export async function checkSideFiles(
  source: Checkpoint,
  result: Checkpoint,
  {
    modelling,
    edited,
  }: { readonly modelling: readonly ModellingFile[]; readonly edited: ReadonlyMap<string, string | undefined> },
  problems: string[],
): Promise<number> {
  let compared = 0;
  const own = new Set(modelling.map(({ target }) => target));
  const held = new Map((await result.files.list(result.folder)).map(({ path, bytes }) => [path, bytes] as const));
  const read = (file: string, bytes: number, files: Files) => files.readRange({ file, start: 0, end: bytes });
  const compare = (target: string, source: string, expected: Uint8Array, actual: Uint8Array | undefined): void => {
    if (!actual) problems.push(`${target} is missing`);
    else if (Buffer.compare(expected, actual) !== 0) problems.push(`${target} differs from ${source}`);
    compared++;
  };
  const actual = async (target: string): Promise<Uint8Array | undefined> => {
    const bytes = held.get(target);
    return bytes === undefined ? undefined : read(fileIn(result.folder, target), bytes, result.files);
  };
  for (const { source: file, target, bytes } of await listSideFiles(source)) {
    if (own.has(target)) continue;
    const text = edited.get(target);
    if (edited.has(target) && text === undefined) {
      if (held.has(target)) problems.push(`${target} should not be there`);
      continue;
    }
    const expected = text === undefined ? await read(file, bytes, source.files) : new TextEncoder().encode(text);
    compare(target, file, expected, await actual(target));
  }
  for (const { source: file, target } of modelling) compare(target, file, await readFile(file), await actual(target));
  return compared;
}
