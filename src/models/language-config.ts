import type { Config } from './family.js';

/** The keys of a language model's config in multimodal models. Qwen-Omni has two language models; the thinker's config is used. */
const LANGUAGE_KEYS = ['text_config', 'language_config', 'llm_config', 'thinker_config'] as const;

const isObject = (value: unknown): value is Config =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** The config, with its entries overridden by those of the nested language model's config. That model has the experts. */
export function languageConfig(config: Config): Config {
  const nested = LANGUAGE_KEYS.map((key) => config[key]).find(isObject);
  return nested ? { ...config, ...languageConfig(nested) } : config;
}
