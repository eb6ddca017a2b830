/** Typed entries of `config.json`. The error for a missing or wrong entry names its key. */

import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import { ConfigValueError } from '../errors.js';
import { fileIn } from '../location.js';
import { languageConfig } from '../models/detect.js';
import type { Config } from '../models/family.js';

/** Reads entries. An absent or null entry gives `otherwise`; without it a `ConfigValueError` is thrown. */
export interface ConfigReader {
  /** The file's location, for error messages. */
  readonly file: string;
  /** All entries, unchecked. */
  readonly entries: Config;
  number(key: string, otherwise?: number): number;
  flag(key: string, otherwise?: boolean): boolean;
  text(key: string, otherwise?: string): string;
  /** A nested object; undefined if the entry is absent or null. */
  section(key: string): ConfigReader | undefined;
}

/** The reader of a checkpoint's language model config. */
export const configReader = (checkpoint: Pick<Checkpoint, 'folder' | 'config'>): ConfigReader =>
  readerOf(languageConfig(checkpoint.config), fileIn(checkpoint.folder, CONFIG_FILE), '');

function readerOf(config: Config, file: string, path: string): ConfigReader {
  const entry =
    <T>(kind: string, fits: (value: unknown) => boolean) =>
    (key: string, otherwise?: T): T => {
      const value = config[key] ?? otherwise;
      if (!fits(value)) throw new ConfigValueError(file, `${path}${key}`, kind, config[key]);
      return value as T;
    };
  return {
    file,
    entries: config,
    number: entry<number>('a number', Number.isFinite),
    flag: entry<boolean>('true or false', (it) => typeof it === 'boolean'),
    text: entry<string>('a text', (it) => typeof it === 'string'),
    section(key) {
      const value = config[key] ?? undefined;
      if (value === undefined) return undefined;
      if (typeof value !== 'object') throw new ConfigValueError(file, `${path}${key}`, 'an object', value);
      return readerOf(value as Config, file, `${path}${key}.`);
    },
  };
}
