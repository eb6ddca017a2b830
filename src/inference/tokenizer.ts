/** A checkpoint's tokenizer: text to token numbers and back. */
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { type Checkpoint, readJsonObject } from '../checkpoint/open-checkpoint.js';
import { TokenizerError } from '../errors.js';
import { fileIn } from '../location.js';

const TOKENIZER_FILE = 'tokenizer.json';
const TOKENIZER_CONFIG_FILE = 'tokenizer_config.json';
const GENERATION_CONFIG_FILE = 'generation_config.json';

/** Converts text to tokens and back. */
export interface Tokenizer {
  /** @param special add the special tokens that the model expects before and after a text */
  encode(text: string, special: boolean): number[];
  /** Leaves out special tokens. Bytes that do not form a character become U+FFFD. */
  decode(tokens: readonly number[]): string;
}

/** Opens a checkpoint's tokenizer. Throws a `TokenizerError` if tokenizer.json is missing or the library cannot read it. */
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

/** Tokens that end a text, from generation_config.json, else from config.json. */
export async function endTokens(checkpoint: Checkpoint): Promise<ReadonlySet<number>> {
  const [generation] = await readFiles(checkpoint, [GENERATION_CONFIG_FILE]);
  const ends = [generation?.eos_token_id ?? checkpoint.config.eos_token_id].flat();
  return new Set(ends.filter((it): it is number => Number.isInteger(it)));
}

/** The JSON objects in a checkpoint's side files; undefined for missing files. */
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

/** Turns tokens into text as they come. */
export interface TextStream {
  /** The text that this token completes; empty while a character is incomplete. */
  push(token: number): string;
  /** The remaining text, even if its last character is incomplete. */
  end(): string;
}

/**
 * Decodes token by token. A token's text can depend on the token before it, and one character can take several tokens. So new
 * tokens are decoded together with the tokens of the last text that was returned, and the text beyond that one is new.
 */
export function textStream({ decode }: Pick<Tokenizer, 'decode'>): TextStream {
  let tokens: number[] = [];
  /** How many of `tokens` have had their text returned. */
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
