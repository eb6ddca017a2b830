/** Lets a model write sequences by its own probabilities, for a record without a text. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import type { PassIdentity, PassSizes } from '../../src/calibration/pass-folder.js';
import type { Checkpoint } from '../../src/checkpoint/open-checkpoint.js';
import { BudgetTooSmallError } from '../../src/errors.js';
import { type FileSystem, readWhole, syncFolder, writeSynced } from '../../src/file-system.js';
import type { LanguageModel } from '../../src/inference/language-model.js';
import type { CalibrateSettings } from '../../src/inference/run-options.js';
import { draw } from '../../src/inference/sample.js';
import { openTokenizer, type Tokenizer } from '../../src/inference/tokenizer.js';
import { createRandom, type Random } from '../../src/linalg/random.js';
import { asWriteError } from '../../src/output/shard-writer.js';
import { openModels } from './run-models.js';

/** The most sequences that are written together. Each step reads the weights once for all of them. */
const TOGETHER = 32;
/** A single row would be computed in another order, and a text must not depend on how many are written together. */
const LEAST_TOGETHER = 2;

/** How far the writing is. */
export interface WritingProgress {
  /** Tokens written so far, of all sequences. */
  readonly done: number;
  readonly tokens: number;
}

/** The sizes of the text, and the folder that keeps finished sequences for an interrupted run. */
export interface WritingTask {
  readonly checkpoint: Checkpoint;
  readonly sizes: PassSizes;
  readonly settings: CalibrateSettings;
  readonly identity: PassIdentity;
  readonly workspace: string;
  readonly onTokens: ((progress: WritingProgress) => void) | undefined;
  readonly signal: AbortSignal | undefined;
  readonly fileSystem: FileSystem;
}

/** Returns the token numbers, (sequences, length). Each sequence begins with a token chosen at random. */
export async function writeText(task: WritingTask): Promise<Int32Array> {
  const { sizes, identity, workspace, fileSystem: fs, onTokens } = task;
  const { sequences, length } = sizes;
  const tokens = new Int32Array(sequences * length);
  const run = createHash('sha256').update(JSON.stringify(identity)).digest('hex').slice(0, 16);
  let writer: Writer | undefined;
  try {
    for (let first = 0; first < sequences; first += TOGETHER) {
      const target = tokens.subarray(first * length, Math.min(sequences, first + TOGETHER) * length);
      const bytes = new Uint8Array(target.buffer, target.byteOffset, target.byteLength);
      const path = join(workspace, `written-${run}-${first}.i32`);
      const found = await readWhole(fs, path, bytes.byteLength);
      if (found?.byteLength === bytes.byteLength) {
        bytes.set(found);
        continue;
      }
      writer ??= await openForWriting(task);
      const told = (done: number): void => onTokens?.({ done: first * length + done, tokens: tokens.length });
      await writeSequences(writer, task, { first, target, told });
      await save(path, bytes, fs);
    }
  } finally {
    await writer?.close();
  }
  return tokens;
}

async function save(path: string, bytes: Uint8Array, fs: FileSystem): Promise<void> {
  try {
    await writeSynced(fs, `${path}.new`, [bytes]);
    await fs.rename(`${path}.new`, path);
    await syncFolder(join(path, '..'), fs);
  } catch (error) {
    throw asWriteError(path, error);
  }
}

interface Writer {
  readonly model: LanguageModel;
  readonly tokenizer: Tokenizer;
  /** Sequences that are written together. */
  readonly together: number;
  close(): Promise<void>;
}

/** Opens the model for as many sequences together as memory allows. */
async function openForWriting({ checkpoint, sizes, settings, signal }: WritingTask): Promise<Writer> {
  const tokenizer = await openTokenizer(checkpoint);
  for (let together = TOGETHER; ; together = Math.max(LEAST_TOGETHER, together / 2)) {
    const use = { checkpoint, keptTokens: together * sizes.length, batchTokens: together };
    try {
      const { models, close } = await openModels([use], settings, signal);
      return { model: models[0] as LanguageModel, tokenizer, together, close };
    } catch (error) {
      if (!(error instanceof BudgetTooSmallError) || together === LEAST_TOGETHER) throw error;
    }
  }
}

/**
 * Writes some sequences.
 * @param first the number of the first one
 */
async function writeSequences(
  { model, tokenizer, together }: Writer,
  { sizes: { length }, settings: { seed } }: WritingTask,
  { first, target, told }: { first: number; target: Int32Array; told: (done: number) => void },
): Promise<void> {
  const { vocabulary } = model;
  const count = target.length / length;
  for (let begin = 0; begin < count; begin += together) {
    const kept = Math.min(together, count - begin);
    const members = Array.from({ length: Math.max(LEAST_TOGETHER, kept) }, (_, i) => {
      const random = createRandom(seed, first + begin + i);
      return { random, sequence: model.newSequence(), token: firstToken(tokenizer, vocabulary, random) };
    });
    for (let at = 0; ; at++) {
      for (let i = 0; i < kept; i++) target[(begin + i) * length + at] = (members[i] as { token: number }).token;
      told(begin * length + kept * (at + 1));
      if (at + 1 === length) break;
      let hidden: Float32Array = new Float32Array(0);
      const parts = members.map(({ sequence, token }) => ({ sequence, tokens: [token] }));
      for await (const states of model.forward(parts)) hidden = states;
      const logits = await model.logits(hidden);
      for (const [i, member] of members.entries())
        member.token = draw(logits.subarray(i * vocabulary, (i + 1) * vocabulary), member.random);
    }
  }
}

/** A vocabulary may have numbers without a token, and special tokens. Neither begins a text. */
const MOST_TRIES = 1000;

function firstToken(tokenizer: Tokenizer, vocabulary: number, random: Random): number {
  for (let i = 0; i < MOST_TRIES; i++) {
    const token = random.below(vocabulary);
    if (tokenizer.decode([token]) !== '') return token;
  }
  return 0;
}
