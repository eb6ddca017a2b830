import type { Config } from './family.js';

/** What multimodal models call the config of their language model. Qwen-Omni has two: its thinker's is the one. */
const LANGUAGE_KEYS = ['text_config', 'language_config', 'llm_config', 'thinker_config'] as const;

const isObject = (value: unknown): value is Config =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** A multimodal model's config nests that of its language model, which is the one that has experts; its entries come first. */
export function languageConfig(config: Config): Config {
  const nested = LANGUAGE_KEYS.map((key) => config[key]).find(isObject);
  return nested ? { ...config, ...languageConfig(nested) } : config;
}
