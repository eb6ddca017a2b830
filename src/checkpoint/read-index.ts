/** Reads `model.safetensors.index.json` without an object or a string for each entry. There can be half a million. */
import { InvalidJsonError, UnsafePathError } from '../errors.js';
import { isPlainPath } from './plain-path.js';
import { notJson, parseJson, readBytes, type WholeFiles } from './read-json.js';
import { parseSpan, parseString, type Span, scanObject, stringAt, wholeText } from './scan-json.js';

export interface ShardIndex {
  /** Absolute path, or a URL. */
  readonly path: string;
  /** Shard files by their path in the folder. The numbers are the positions in the text at which the tensors' names begin. */
  readonly placed: ReadonlyMap<string, readonly number[]>;
  /** The tensor's name that begins at this position. */
  nameAt(start: number): string;
}

/** Reads an index as Python does: the last of duplicate keys counts, in `weight_map` too (`owners`). */
export async function readIndex(path: string, files: WholeFiles): Promise<ShardIndex> {
  const json = Buffer.from((await readBytes(path, files)).buffer);
  let map: Span | undefined;
  try {
    scanObject(json, wholeText(json), (keySpan, span) => {
      if (parseString(json, keySpan) === 'weight_map') map = span;
      else parseJson(json.toString('utf8', span.start, span.end), path);
    });
    if (!map || json[map.start] !== 0x7b) throw new InvalidJsonError(path, 'it has no "weight_map" object');
    return { path, placed: readWeightMap(json, map, path), nameAt: (start) => nameAt(json, start, path) };
  } catch (error) {
    throw notJson(path, error);
  }
}

function readWeightMap(json: Buffer, within: Span, path: string): Map<string, number[]> {
  const placed = new Map<string, number[]>();
  const spelled = new Map<string, number[]>(); // by the spelling in the text: "./a" and "a" are the same file
  scanObject(json, within, (key, span) => {
    const file = json[span.start] === 0x22 ? parseString(json, span) : parseSpan(json, span);
    if (typeof file !== 'string')
      throw new InvalidJsonError(path, `"weight_map" places "${parseString(json, key)}" in no file`);
    let tensors = spelled.get(file);
    if (!tensors) {
      const plain = file.replace(/^(?:\.\/)+/, '');
      if (!isPlainPath(plain)) throw new UnsafePathError(path, file);
      tensors = placed.get(plain) ?? [];
      placed.set(plain, tensors);
      spelled.set(file, tensors);
    }
    tensors.push(key.start);
  });
  return placed;
}

function nameAt(json: Buffer, start: number, path: string): string {
  try {
    return parseString(json, stringAt(json, start));
  } catch (error) {
    throw notJson(path, error);
  }
}

/** Each tensor's file. If the index names a tensor twice, the last one counts. It takes some 100 bytes for each tensor. */
export function owners({ placed, nameAt }: ShardIndex): Map<string, string> {
  const last = new Map<string, { start: number; file: string }>();
  for (const [file, starts] of placed) {
    for (const start of starts) {
      const name = nameAt(start);
      if (start > (last.get(name)?.start ?? -1)) last.set(name, { start, file });
    }
  }
  return new Map([...last].map(([name, { file }]) => [name, file]));
}
