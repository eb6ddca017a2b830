/** What `config.json` says of quantisation, as far as the tensors do not say it themselves. */
import type { Checkpoint } from '../open-checkpoint.js';

/** `quantization_config` as far as it is looked at. */
export interface QuantisationConfig {
  readonly quant_method?: unknown;
  readonly weight_block_size?: unknown;
  readonly config_groups?: Readonly<
    Record<string, { readonly weights?: Readonly<Record<string, unknown>> | null } | null>
  >;
  readonly [key: string]: unknown;
}

/** Where a config keeps it: multimodal models nest their language model's. */
export const QUANTISATION_KEYS = [
  'quantization_config',
  'compression_config',
  'text_config.quantization_config',
] as const;

/** The config's entry on quantisation, wherever it is kept: the outermost, and none of a vision or audio tower's. */
export function quantisationConfig(config: Checkpoint['config']): QuantisationConfig | undefined {
  let level: ReadonlyArray<Checkpoint['config']> = [config];
  while (level.length > 0) {
    for (const it of level) {
      const entry = [it.quantization_config, it.compression_config].find(isObject);
      if (entry) return entry;
    }
    level = level.flatMap((it) =>
      Object.entries(it).flatMap(([key, value]) => (isObject(value) && !/vision|audio/.test(key) ? [value] : [])),
    );
  }
  return undefined;
}

/** `quant_method` in lower case; '' where there is none. */
export const quantisationMethod = (config: Checkpoint['config']): string =>
  String(quantisationConfig(config)?.quant_method ?? '').toLowerCase();

/** The `weights` of compressed-tensors' groups. */
export const weightSchemes = (config: Checkpoint['config']): ReadonlyArray<Readonly<Record<string, unknown>>> =>
  Object.values(quantisationConfig(config)?.config_groups ?? {}).flatMap((group) =>
    isObject(group?.weights) ? [group.weights] : [],
  );

export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** A positive whole number, or undefined. */
export const positive = (value: unknown): number | undefined =>
  Number.isSafeInteger(value) && (value as number) > 0 ? (value as number) : undefined;
