/** A checkpoint's own tokenizer: text to token numbers and back. */
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { type Checkpoint, readJsonObject } from '../checkpoint/open-checkpoint.js';
import { TokenizerError } from '../errors.js';
import { fileIn } from '../location.js';

const TOKENIZER_FILE = 'tokenizer.json';
const TOKENIZER_CONFIG_FILE = 'tokenizer_config.json';
const GENERATION_CONFIG_FILE = 'generation_config.json';

export interface Tokenizer {
  /** @param special with the tokens that the model wants before and after a text */
  encode(text: string, special: boolean): number[];
  /** Special tokens are left out; bytes that make no character are U+FFFD. */
  decode(tokens: readonly number[]): string;
}

/** Throws `TokenizerError` where the checkpoint has no tokenizer.json, or one that the library does not read. */
export async function openTokenizer(checkpoint: Checkpoint): Promise<Tokenizer> {
  const file = fileIn(checkpoint.folder, TOKENIZER_FILE);
  const [definition, settings] = await readFiles(checkpoint, [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE]);
  if (!definition) throw new TokenizerError(file, 'there is no such file');
  try {
    const tokenizer = new HuggingFaceTokenizer(definition, settings ?? {});
    return {
      encode: (text, special) => (text ? tokenizer.encode(text, { add_special_tokens: special }).ids : []),
      decode: (tokens) => (tokens.length ? tokenizer.decode([...tokens], { skip_special_tokens: true }) : ''),
    };
  } catch (error) {
    throw new TokenizerError(file, (error as Error).message);
  }
}

/** The tokens that end a text, as the checkpoint's generation settings or its config have them. */
export async function endTokens(checkpoint: Checkpoint): Promise<ReadonlySet<number>> {
  const [generation] = await readFiles(checkpoint, [GENERATION_CONFIG_FILE]);
  const ends = [generation?.eos_token_id ?? checkpoint.config.eos_token_id].flat();
  return new Set(ends.filter((it): it is number => Number.isInteger(it)));
}

/** The JSON objects in a checkpoint's side files; undefined for those that are not there. */
async function readFiles(
  { folder, files }: Checkpoint,
  names: readonly string[],
): Promise<Array<Record<string, unknown> | undefined>> {
  try {
    const held = new Set((await files.list(folder)).map(({ path }) => path));
    const read = [];
    for (const name of names) read.push(held.has(name) ? await readJsonObject(fileIn(folder, name), files) : undefined);
    return read;
  } finally {
    await files.close();
  }
}

export interface TextStream {
  /** The text that this token completes; empty while a character is unfinished. */
  push(token: number): string;
  /** What is left, finished or not. */
  end(): string;
}

/**
 * Token by token to text. A token's text can depend on the one before it, and a character can take several; so each is decoded
 * after those of the last text that was handed out, and what that yields beyond them is new.
 */
export function textStream({ decode }: Pick<Tokenizer, 'decode'>): TextStream {
  let tokens: number[] = [];
  /** Of `tokens`, those whose text is out. */
  let done = 0;
  const next = (): string => decode(tokens).slice(decode(tokens.slice(0, done)).length);
  return {
    push(token) {
      tokens.push(token);
      const text = next();
      if (text === '' || text.endsWith('\ufffd')) return '';
      tokens = tokens.slice(done);
      done = tokens.length;
      return text;
    },
    end: next,
  };
}
