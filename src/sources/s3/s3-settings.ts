/** Settings of S3, in the environment variables and files of AWS's tools. */
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { InvalidLocationError } from '../../errors.js';

type Env = Readonly<Record<string, string | undefined>>;

export interface S3Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string | undefined;
  /** The variables or the file that has the keys. */
  readonly source: string;
}

export interface S3Settings {
  /** Without credentials, requests are not signed, as public buckets allow. */
  readonly credentials: S3Credentials | undefined;
  readonly region: string;
  /** Another service than Amazon's. */
  readonly endpoint: string | undefined;
}

/** Reads the settings: the environment first, then the profile's entries in `~/.aws/credentials` and `~/.aws/config`. */
export async function s3Settings(env: Env): Promise<S3Settings> {
  const profile = env.AWS_PROFILE ?? 'default';
  const credentialsFile = env.AWS_SHARED_CREDENTIALS_FILE ?? join(homedir(), '.aws', 'credentials');
  const stored = await sectionOf(credentialsFile, profile);
  const config = await sectionOf(
    env.AWS_CONFIG_FILE ?? join(homedir(), '.aws', 'config'),
    profile === 'default' ? profile : `profile ${profile}`,
  );
  const endpoint = env.AWS_ENDPOINT_URL_S3 ?? env.AWS_ENDPOINT_URL ?? config.get('endpoint_url');
  if (endpoint && !(URL.canParse(endpoint) && /^https?:$/.test(new URL(endpoint).protocol)))
    throw new InvalidLocationError('AWS_ENDPOINT_URL', 'it is not an address', 'https://host:port');
  return {
    credentials: inEnvironment(env) ?? inSection(stored, `${credentialsFile} (${profile})`),
    region: env.AWS_REGION ?? env.AWS_DEFAULT_REGION ?? config.get('region') ?? 'us-east-1',
    endpoint: endpoint || undefined,
  };
}

function inEnvironment(env: Env): S3Credentials | undefined {
  const { AWS_ACCESS_KEY_ID: accessKeyId, AWS_SECRET_ACCESS_KEY: secretAccessKey } = env;
  if (!accessKeyId || !secretAccessKey) return undefined;
  return { accessKeyId, secretAccessKey, sessionToken: env.AWS_SESSION_TOKEN, source: 'AWS_ACCESS_KEY_ID' };
}

function inSection(entries: ReadonlyMap<string, string>, source: string): S3Credentials | undefined {
  const [accessKeyId, secretAccessKey] = [entries.get('aws_access_key_id'), entries.get('aws_secret_access_key')];
  if (!accessKeyId || !secretAccessKey) return undefined;
  return { accessKeyId, secretAccessKey, sessionToken: entries.get('aws_session_token'), source };
}

/** The entries of one section of an INI file; none if there is no such file. */
async function sectionOf(file: string, name: string): Promise<Map<string, string>> {
  const text = await readFile(file, 'utf8').catch(() => '');
  const entries = new Map<string, string>();
  let inside = false;
  for (const line of text.split(/\r?\n/)) {
    const section = /^\s*\[\s*(.*?)\s*\]/.exec(line)?.[1];
    if (section !== undefined) inside = section.replace(/\s+/, ' ') === name;
    const [, key, value] = /^(\w+)\s*=\s*(.*?)\s*$/.exec(line) ?? [];
    if (inside && key && value !== undefined) entries.set(key, value);
  }
  return entries;
}
