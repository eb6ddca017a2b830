/** A checkpoint's chat template: messages to text. */
import { type Checkpoint, readJsonObject } from '../checkpoint/open-checkpoint.js';
import { readText } from '../checkpoint/read-json.js';
import { TokenizerError } from '../errors.js';
import { fileIn } from '../location.js';

const TEMPLATE_FILE = 'chat_template.jinja';
const CONFIG_FILE = 'tokenizer_config.json';
const TOKENS_FILE = 'special_tokens_map.json';

/** A message as templates expect it: `role`, `content`, and what else a template knows, for example `tool_calls`. */
export type ChatMessage = Readonly<Record<string, unknown>>;

/** Turns a conversation into the text that the model was trained on. Throws an `Error` of the template. */
export type ChatTemplate = (messages: readonly ChatMessage[]) => string;

/**
 * Opens a checkpoint's template, which transformers looks for in the same places: in a file of its own, then in the tokenizer's
 * config. Returns undefined if there is none. Throws a `TokenizerError` if it cannot be parsed.
 */
export async function openChatTemplate({ folder, files }: Checkpoint): Promise<ChatTemplate | undefined> {
  const held = new Set((await files.list(folder)).map(({ path }) => path));
  try {
    const readJson = async (name: string) => (held.has(name) ? await readJsonObject(fileIn(folder, name), files) : {});
    const config = await readJson(CONFIG_FILE);
    const own = held.has(TEMPLATE_FILE);
    const file = fileIn(folder, own ? TEMPLATE_FILE : CONFIG_FILE);
    const source = own ? await readText(file, files) : namedDefault(config.chat_template);
    if (source === undefined) return undefined;
    const tokens = specialTokens({ ...(await readJson(TOKENS_FILE)), ...config });
    return await compile(file, source, tokens);
  } finally {
    await files.close();
  }
}

async function compile(file: string, source: string, tokens: Record<string, string>): Promise<ChatTemplate> {
  const { Environment, Interpreter, Template } = await import('@huggingface/jinja');
  try {
    const { parsed } = new Template(source);
    return (messages) => {
      const variables = new Environment();
      const given = { ...tokens, messages, add_generation_prompt: false };
      for (const [name, value] of Object.entries({ ...GLOBALS, ...given })) variables.set(name, value);
      return String(new Interpreter(variables).run(parsed).value);
    };
  } catch (error) {
    throw new TokenizerError(file, `its chat template is not understood: ${(error as Error).message}`);
  }
}

/** A config may have several templates, for example one for tools. */
function namedDefault(templates: unknown): string | undefined {
  if (typeof templates === 'string') return templates;
  const listed = Array.isArray(templates) ? templates.find((it) => it?.name === 'default')?.template : undefined;
  return typeof listed === 'string' ? listed : undefined;
}

/** Entries like "bos_token", whose value is a text or an object with it. */
function specialTokens(entries: Readonly<Record<string, unknown>>): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const [name, value] of Object.entries(entries)) {
    const content = (value as { content?: unknown } | null)?.content ?? value;
    if (name.endsWith('_token') && typeof content === 'string') tokens[name] = content;
  }
  return tokens;
}

/** Some templates name the date. A record must not depend on when it is made, so it is always the same. */
const DATE: Readonly<Record<string, string>> = {
  ...{ Y: '2026', y: '26', m: '01', B: 'January', b: 'Jan', d: '01', A: 'Thursday', a: 'Thu' },
  ...{ H: '00', I: '12', M: '00', S: '00', p: 'AM', '%': '%' },
};

/** The functions and constants that templates may use besides their variables. */
const GLOBALS = {
  ...{ true: true, false: false, none: null, True: true, False: false, None: null },
  strftime_now: (format: string) => format.replace(/%-?(.)/g, (whole, code: string) => DATE[code] ?? whole),
  range: (...[start, stop, step = 1]: [number, number?, number?]) => {
    const [from, to] = stop === undefined ? [0, start] : [start, stop];
    return Array.from({ length: Math.max(0, Math.ceil((to - from) / step)) }, (_, i) => from + i * step);
  },
  raise_exception: (message: string) => {
    throw new Error(message);
  },
};
