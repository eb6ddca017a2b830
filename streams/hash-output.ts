import { hashParts, type Manifest, type ManifestPart } from '../src/checkpoint/manifest.js';
import type { Output } from '../src/checkpoint/output-folder.js';
import { WriteError } from '../src/errors.js';

export interface HashedOutput extends Output {
  /** The hashes of all that was given to it so far. */
  readonly written: Manifest;
}

/**
 * Hashes what passes on its way to `output`, while it is written: nothing is read again, and nothing is held but one part.
 * Parts of a tensor may come in any order, so each is hashed for itself.
 */
export function hashOutput(output: Output): HashedOutput {
  const written = new Map<string, ManifestPart[]>();
  const places = new Map<string, { parts: ManifestPart[]; start: number }>();
  const begin = (file: string): ManifestPart[] => {
    const parts: ManifestPart[] = [];
    written.set(file, parts);
    return parts;
  };
  /** Hashing runs on another thread, beside the writing. */
  const both = async (writing: Promise<void>, parts: ManifestPart[], hashing: Promise<ManifestPart[]>) => {
    const [own] = await Promise.all([hashing, writing]);
    parts.push(...own);
  };
  return {
    written,
    async reserve(layout) {
      const parts = begin(layout.file);
      await both(output.reserve(layout), parts, hashParts(layout.header, 0));
      let start = layout.header.byteLength;
      for (const { name, bytes } of layout.tensors) {
        places.set(name, { parts, start });
        start += bytes;
      }
    },
    async write(tensor, offset, data) {
      const place = places.get(tensor);
      if (!place) throw new WriteError('the output', `no room is reserved for "${tensor}"`);
      await both(output.write(tensor, offset, data), place.parts, hashParts(data, place.start + offset, tensor));
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
    commit: (last) => output.commit(last),
    abandon: () => output.abandon(),
    onLost: (listener) => output.onLost?.(listener),
  };
}
