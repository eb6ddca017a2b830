/** Settings of the hub, in the environment variables and files of huggingface_hub. */
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { BadCredentialsError, InvalidLocationError } from '../../errors.js';

type Env = Readonly<Record<string, string | undefined>>;

/** A secret, and where it was found. */
export interface Token {
  readonly value: string;
  readonly source: string;
}

export interface HubSettings {
  /** Without a slash at its end. */
  readonly endpoint: string;
  /** The folder with the repositories that were downloaded. */
  readonly cache: string;
  readonly offline: boolean;
  readonly token: Token | undefined;
}

const isTrue = (text: string | undefined): boolean => /^(?:1|on|yes|true)$/i.test(text ?? '');

/** Reads the settings. Throws `BadCredentialsError` for a token that cannot be sent. */
export async function hubSettings(env: Env): Promise<HubSettings> {
  const home = env.HF_HOME ?? join(env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'huggingface');
  const endpoint = (env.HF_ENDPOINT ?? 'https://huggingface.co').replace(/\/+$/, '');
  if (!/^https?:\/\//.test(endpoint) || !URL.canParse(endpoint))
    throw new InvalidLocationError('HF_ENDPOINT', 'it is not the address of a hub', 'https://huggingface.co');
  return {
    endpoint,
    cache: env.HF_HUB_CACHE ?? env.HUGGINGFACE_HUB_CACHE ?? join(home, 'hub'),
    offline: isTrue(env.HF_HUB_OFFLINE ?? env.TRANSFORMERS_OFFLINE),
    token: isTrue(env.HF_HUB_DISABLE_IMPLICIT_TOKEN)
      ? undefined
      : await readToken(env, env.HF_TOKEN_PATH ?? join(home, 'token')),
  };
}

async function readToken(env: Env, file: string): Promise<Token | undefined> {
  for (const name of ['HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN']) {
    const value = env[name]?.trim();
    if (value) return checked({ value, source: name });
  }
  const value = (await readFile(file, 'utf8').catch(() => '')).trim();
  return value ? checked({ value, source: file }) : undefined;
}

function checked(token: Token): Token {
  if (/^[\x21-\x7e]+$/.test(token.value)) return token;
  throw new BadCredentialsError(
    'HTTP',
    token.source,
    'It has a space or a character that is not ASCII: copy it again.',
  );
}
