/**
 * Decides which safetensors files of a folder are the model and which tensors it has. The rules are those of transformers and
 * vLLM, so a folder is read as they load it. A note says what is not read.
 */
import { AmbiguousTensorError, MissingShardError, NotACheckpointError, SeveralModelsError } from '../errors.js';
import { fileIn } from '../location.js';
import type { Files } from '../sources/files.js';
import { INDEX_FILE, SINGLE_FILE } from './file-names.js';
import type { TensorInfo } from './header.js';
import { count, listNames } from './list-names.js';
import { HeaderMemory, openShard, type Shard } from './open-shard.js';
import { owners, readIndex, type ShardIndex } from './read-index.js';

/** The files of a folder. */
export interface Listing {
  readonly root: string;
  /** The paths of its files, relative to `root`, sorted. */
  readonly names: readonly string[];
  /** Links whose target is missing. Interrupted downloads into a cache leave such links. */
  readonly dangling: readonly string[];
  readonly files: Files;
}

export interface ModelShards {
  readonly shards: readonly Shard[];
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** Sentences on files that are not read and on differences between the index and the shards. */
  readonly notes: readonly string[];
}

/**
 * Finds and opens the files of the model. If there is an index, they are the files that it names. But `model.safetensors` is the
 * model if it is not in the index and holds all tensors of the index, or if all shards of the index are missing. Without an
 * index, `model.safetensors` is the model, else the shards of one numbered set, else all files except adapters and the like.
 * Every tensor in these files is part of the model, even if the index does not list it. Throws an `InputError` if a file of the
 * model is missing or damaged, or if several sets of files could be the model.
 */
export async function openModelShards(listing: Listing): Promise<ModelShards> {
  const { root, names, dangling, files } = listing;
  if (dangling.includes(INDEX_FILE)) throw new MissingShardError(fileIn(root, INDEX_FILE), DANGLING);
  if (!names.includes(INDEX_FILE)) return openWithoutIndex(listing);
  const index = await readIndex(fileIn(root, INDEX_FILE), files);
  const gone = [...index.placed.keys()].filter((file) => !names.includes(file));
  const beside = names.includes(SINGLE_FILE) && !index.placed.has(SINGLE_FILE);
  if (!beside) return openIndexed(listing, index, gone);

  const memory = new HeaderMemory();
  const single = await openShard(fileIn(root, SINGLE_FILE), files, memory);
  const lacking = countLacking(index, memory.names);
  const allGone = gone.length === index.placed.size;
  if (lacking > 0 && !allGone) return openIndexed(listing, index, gone);
  const reason = gone.length
    ? `${count(gone.length, 'shard')} that it names ${gone.length === 1 ? 'is' : 'are'} not there`
    : 'that file holds all that it names';
  const aside = notOf([SINGLE_FILE], names).filter((name) => !index.placed.has(name));
  return {
    shards: [single],
    tensors: new Map(single.tensors.map((tensor) => [tensor.name, tensor])),
    notes: [`${SINGLE_FILE} is read and ${INDEX_FILE} is left aside: ${reason}.`, ...asideNote(aside)],
  };
}

/** The reason why a link without a target cannot be read. */
export const DANGLING = 'it is a link to a file that is not there, as an interrupted download leaves it';

/** Safetensors files at the top of the folder that are not part of the model. */
const notOf = (model: Iterable<string>, names: readonly string[]): string[] => {
  const held = new Set(model);
  return names.filter((name) => /^[^/]+\.safetensors$/.test(name) && !held.has(name));
};

const asideNote = (names: readonly string[]): string[] =>
  names.length
    ? [
        `left aside: ${count(names.length, 'safetensors file')} that ${names.length === 1 ? 'is' : 'are'} not part of the model (${listNames(names)}).`,
      ]
    : [];

/** The number of tensors that the index names and the file does not hold. */
function countLacking({ placed, nameAt }: ShardIndex, held: ReadonlySet<string>): number {
  let lacking = 0;
  for (const starts of placed.values()) for (const start of starts) if (!held.has(nameAt(start))) lacking++;
  return lacking;
}

async function openIndexed(listing: Listing, index: ShardIndex, gone: readonly string[]): Promise<ModelShards> {
  const { root, names, files } = listing;
  const [missing] = gone;
  if (missing !== undefined) {
    const tensors = index.placed.get(missing)?.length ?? 0;
    throw new MissingShardError(fileIn(root, missing), whyMissing(listing, missing, tensors));
  }
  await files.readHeads?.([...index.placed.keys()].map((file) => fileIn(root, file)));
  const memory = new HeaderMemory();
  const shards: Shard[] = [];
  const unlisted: string[] = [];
  const absent: string[] = [];
  for (const file of names) {
    const expected = index.placed.get(file);
    if (!expected) continue;
    shards.push(await openShard(fileIn(root, file), files, memory));
    const unclaimed = new Set(memory.names);
    for (const start of expected) {
      const name = index.nameAt(start);
      if (memory.names.has(name)) unclaimed.delete(name);
      else absent.push(name);
    }
    for (const name of unclaimed) unlisted.push(name);
  }
  let owner: ReadonlyMap<string, string> | undefined;
  const merged = merge(shards, (name, a, b) => {
    owner ??= owners(index);
    const named = owner.get(name);
    return named !== undefined && fileIn(root, named) === a.file ? a : b;
  });
  const { tensors, doubled } = merged;
  const elsewhere = absent.filter((name) => tensors.has(name));
  return {
    shards: merged.shards,
    tensors,
    notes: [
      ...asideNote(notOf(index.placed.keys(), names)),
      ...tensorNote(
        'the index does not list',
        'that its shards hold: read with the rest',
        minus(unlisted, [...absent, ...doubled]),
      ),
      ...tensorNote('the index names', 'that no shard holds: they are not part of the model', minus(absent, elsewhere)),
      ...tensorNote(
        'the index places',
        'in a shard that does not hold them: they are read from the one that does',
        elsewhere,
      ),
      ...tensorNote('several shards hold', 'of the same name: those are read that the index names', doubled),
    ],
  };
}

const minus = (names: readonly string[], others: readonly string[]): readonly string[] => {
  if (others.length === 0) return names;
  const dropped = new Set(others);
  return names.filter((name) => !dropped.has(name));
};

const tensorNote = (before: string, after: string, names: readonly string[]): string[] =>
  names.length ? [`${before} ${count(names.length, 'tensor')} ${after} (${listNames(names)}).`] : [];

function whyMissing({ names, dangling }: Listing, file: string, tensors: number): string {
  if (dangling.includes(file)) return DANGLING;
  const alike = names.find((name) => name.toLowerCase() === file.toLowerCase());
  const placed = `the index places ${count(tensors, 'tensor')} in it`;
  return alike ? `${placed}, and only ${alike} is there, whose name is spelled otherwise` : placed;
}

const NUMBERED = /^(.+)-(\d+)-of-(\d+)\.safetensors$/;
/** Names of copies and parts of a model that loaders open only on request. */
const APART = /^(?:adapter|consolidated|mtp|optimizer|scheduler)(?![a-z])|[.-](?:fp16|fp32|bf16|int8|int4)(?![a-z])/;

async function openWithoutIndex(listing: Listing): Promise<ModelShards> {
  const { root, names, dangling, files } = listing;
  if (dangling.includes(SINGLE_FILE)) throw new MissingShardError(fileIn(root, SINGLE_FILE), DANGLING);
  const chosen = chooseFiles(listing);
  await files.readHeads?.(chosen.map((file) => fileIn(root, file)));
  const shards: Shard[] = [];
  const memory = new HeaderMemory();
  for (const file of chosen) shards.push(await openShard(fileIn(root, file), files, memory));
  const { tensors } = merge(shards, (name, a, b) => {
    throw new AmbiguousTensorError(name, a.file, b.file);
  });
  const notes =
    chosen.length > 1 ? [`there is no ${INDEX_FILE}: the headers of ${chosen.length} shards are read instead.`] : [];
  return { shards, tensors, notes: [...notes, ...asideNote(notOf(chosen, names))] };
}

function chooseFiles(listing: Listing): readonly string[] {
  const { root, names, dangling } = listing;
  if (names.includes(SINGLE_FILE)) return [SINGLE_FILE];
  const found = notOf([], names);
  const numbered = found.flatMap((name) => {
    const [, set, number, of] = NUMBERED.exec(name) ?? [];
    return set && number && of ? [{ name, set: `${set}-…-of-${of}`, prefix: set, number, of }] : [];
  });
  if (numbered.length === 0) return unnumberedFiles(listing, found);
  const sets = [...new Set(numbered.map(({ set }) => set))];
  const own = sets.filter((set) => set.startsWith('model-…'));
  const likely = own.length || sets.length === 1 ? own : sets.filter((set) => !APART.test(set));
  const [chosen = sets[0]] = likely;
  if (likely.length > 1 || (likely.length === 0 && sets.length > 1)) throw new SeveralModelsError(root, sets);
  const shards = numbered.filter(({ set }) => set === chosen);
  const [{ prefix, number: digits, of }] = shards as [(typeof shards)[number]];
  const held = new Set(shards.map(({ number }) => Number(number)));
  const first = held.has(0) ? 0 : 1;
  for (let number = first; number < first + Number(of); number++) {
    if (held.has(number)) continue;
    const name = `${prefix}-${String(number).padStart(digits.length, '0')}-of-${of}.safetensors`;
    const one = `the names of those beside it say that it is one of ${Number(of)}`;
    throw new MissingShardError(fileIn(root, name), dangling.includes(name) ? DANGLING : one);
  }
  return shards.map(({ name }) => name);
}

function unnumberedFiles({ root, dangling }: Listing, found: readonly string[]): readonly string[] {
  const model = found.length > 1 ? found.filter((name) => !APART.test(name)) : found;
  if (model.length) return model;
  if (found.length) throw new SeveralModelsError(root, found);
  const lost = dangling.find((name) => /^[^/]+\.safetensors$/.test(name));
  if (lost) throw new MissingShardError(fileIn(root, lost), DANGLING);
  throw new NotACheckpointError(root, 'it has no *.safetensors file');
}

/**
 * Collects the tensors of all shards by name. If two have the same name, `choose` picks one, and the other is removed from its
 * shard. `doubled` has the names that occurred more than once.
 */
function merge(
  shards: readonly Shard[],
  choose: (name: string, a: TensorInfo, b: TensorInfo) => TensorInfo,
): { shards: readonly Shard[]; tensors: Map<string, TensorInfo>; doubled: readonly string[] } {
  const tensors = new Map<string, TensorInfo>();
  const doubled = new Set<string>();
  for (const shard of shards) {
    for (const tensor of shard.tensors) {
      const other = tensors.get(tensor.name);
      tensors.set(tensor.name, other ? choose(tensor.name, other, tensor) : tensor);
      if (other) doubled.add(tensor.name);
    }
  }
  if (doubled.size === 0) return { shards, tensors, doubled: [] };
  const kept = shards.map((shard) => ({
    ...shard,
    tensors: shard.tensors.filter((tensor) => tensors.get(tensor.name) === tensor),
  }));
  return { shards: kept, tensors, doubled: [...doubled] };
}
