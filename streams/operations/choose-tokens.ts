/** Decides which tokens a record is of. */
import { type ChosenSequences, chooseSequences } from '../../src/calibration/choose-sequences.js';
import { readTextTokens, type TextTokens } from '../../src/calibration/read-texts.js';
import type { Checkpoint } from '../../src/checkpoint/open-checkpoint.js';
import { OptionError } from '../../src/errors.js';
import type { FileSystem } from '../../src/file-system.js';
import { openChatTemplate } from '../../src/inference/chat-template.js';
import type { CalibrateSettings } from '../../src/inference/run-options.js';
import { openTokenizer } from '../../src/inference/tokenizer.js';

/** Reads the texts. Throws `OptionError` if they cannot be read, or if none are given and the model shall not write its own. */
export async function readTexts(
  checkpoint: Checkpoint,
  { text, fromModel }: CalibrateSettings,
  { fileSystem: fs, signal }: { fileSystem: FileSystem; signal: AbortSignal | undefined },
): Promise<TextTokens[]> {
  if (fromModel && text.length > 0)
    throw new OptionError('--from-model', 'the text comes from the files of --text; leave one of the two out');
  if (!fromModel && text.length === 0)
    throw new OptionError('--text', 'give at least one file, or --from-model to let the model write the text');
  if (fromModel) return [];
  const tokenizer = await openTokenizer(checkpoint);
  const openTemplate = () => openChatTemplate(checkpoint);
  const texts: TextTokens[] = [];
  for (const file of text) texts.push(await readTextTokens(file, { tokenizer, openTemplate, fs, signal }));
  return texts;
}

/** A choice of tokens. */
export interface TokenChoice {
  readonly sequences: number;
  /** Tokens of a sequence. */
  readonly length: number;
  /** (sequences, length); undefined if the model writes them. */
  readonly tokens?: Int32Array;
  /** Two choices with the same identity have the same tokens. */
  readonly identity: string | Int32Array;
  /** Sentences on what differs from what is usual. */
  readonly notes: readonly string[];
}

/**
 * Chooses sequences. Throws `OptionError` if the texts have too few tokens.
 * @param usual tokens to take if the settings do not say how many
 */
export function chooseTokens(
  texts: readonly TextTokens[],
  { length, usual }: { length: number; usual: number },
  { tokens: wanted, seed, fromModel }: CalibrateSettings,
): TokenChoice {
  if (fromModel) {
    const sequences = Math.ceil((wanted ?? usual) / length);
    return { sequences, length, identity: `from model ${sequences} ${seed}`, notes: [] };
  }
  const chosen = chooseSequences(
    texts.map((it) => it.tokens),
    { length, wanted: wanted ?? usual, seed },
  );
  const available = chosen.available * chosen.length;
  if (wanted !== undefined && wanted > available)
    throw new OptionError(
      '--tokens',
      `the texts have ${available} tokens in whole sequences; give more text, or shorter sequences (--sequence-length)`,
    );
  const notes = notesOn(chosen, length, wanted ?? usual);
  return { sequences: chosen.sequences, length: chosen.length, tokens: chosen.tokens, identity: chosen.tokens, notes };
}

function notesOn({ sequences, length }: ChosenSequences, wantedLength: number, wanted: number): string[] {
  const notes: string[] = [];
  if (length < wantedLength) notes.push(`No text has ${wantedLength} tokens, so sequences have ${length}.`);
  if (sequences * length < wanted)
    notes.push(
      `The texts have ${sequences * length} tokens, and ${wanted} would be enough for each expert: more text gives better results.`,
    );
  return notes;
}
