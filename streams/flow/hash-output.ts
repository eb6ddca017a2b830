import { WriteError } from '../../src/errors.js';
import type { ShardLayout } from '../../src/output/layout.js';
import { type HashedPart, hashParts, type Manifest, type ManifestPart } from '../../src/output/manifest.js';
import type { Output } from '../../src/output/output-folder.js';
import type { StageClocks } from './stage-clock.js';

/** An output that also hashes. */
export interface HashedOutput extends Output {
  /** Hashes of everything that was written so far. */
  readonly written: Manifest;
}

/**
 * Hashes data while it is written to `output`, so that nothing is read again. Parts of a tensor may come in any order, so each
 * part has its own hash.
 */
export function hashOutput(output: Output, clocks?: StageClocks): HashedOutput {
  const written = new Map<string, ManifestPart[]>();
  const places = new Map<string, { parts: ManifestPart[]; start: number }>();
  const begin = (file: string): ManifestPart[] => {
    const parts: ManifestPart[] = [];
    written.set(file, parts);
    return parts;
  };
  const timed = <T>(stage: string, bytes: number, task: () => Promise<T>): Promise<T> =>
    clocks ? clocks.work(stage, bytes, task) : task();
  /** Waits for the write and the hash. Hashing runs on another thread at the same time. */
  const both = async (writing: Promise<void>, parts: ManifestPart[], hashing: Promise<ManifestPart[]>) => {
    const [own] = await Promise.all([hashing, writing]);
    parts.push(...own);
  };
  const place = ({ file, header, tensors }: ShardLayout): ManifestPart[] => {
    const known = written.get(file);
    if (known) return known;
    const parts = begin(file);
    let start = header.byteLength;
    for (const { name, bytes } of tensors) {
      places.set(name, { parts, start });
      start += bytes;
    }
    return parts;
  };
  /** Records hashes, with offsets in the tensor changed to offsets in its file. */
  const note = (tensor: string, hashes: readonly HashedPart[]): void => {
    const { parts, start: from } = places.get(tensor) as { parts: ManifestPart[]; start: number };
    for (const { start, end, sha256 } of hashes) parts.push({ tensor, start: from + start, end: from + end, sha256 });
  };
  return {
    written,
    ...(output.workspace !== undefined && { workspace: output.workspace }),
    elsewhere: output.elsewhere ?? false,
    retains: output.retains ?? false,
    async resume(layouts, units, onBytes) {
      const finished = (await output.resume?.(layouts, units, onBytes)) ?? new Map();
      layouts.forEach(place);
      for (const part of output.finishedParts ?? []) note(part.tensor, [part]);
      return finished;
    },
    async reserve(layout) {
      await both(output.reserve(layout), place(layout), hashParts(layout.header, 0));
    },
    async write(tensor, offset, data) {
      if (!places.has(tensor)) throw new WriteError('the output', `no room is reserved for "${tensor}"`);
      const hashes = await timed('hash', data.byteLength, () => hashParts(data, offset));
      await timed('write', data.byteLength, () => output.write(tensor, offset, data, hashes));
      note(tensor, hashes);
    },
    async writeText(file, text) {
      await both(output.writeText(file, text), begin(file), hashParts(new TextEncoder().encode(text), 0));
    },
    async writeFile(file, bytes, content) {
      const parts = begin(file);
      const hashed = async function* (): AsyncGenerator<Uint8Array> {
        let start = 0;
        for await (const data of content) {
          parts.push(...(await hashParts(data, start)));
          start += data.byteLength;
          yield data;
        }
      };
      await output.writeFile(file, bytes, hashed());
    },
    finish: async (unit, note) => output.finish?.(unit, note),
    sync: async () => output.sync?.(),
    commit: (last) => timed('write', 0, () => output.commit(last)), // the time until data is on the disk counts as writing
    abandon: (keep) => output.abandon(keep),
    onLost: (listener) => output.onLost?.(listener),
  };
}
