/** What `config.json` says of quantisation, as far as the tensors do not say it themselves. */
import type { Checkpoint } from '../open-checkpoint.js';
import { isObject, quantisationEntries } from '../quantisation-entries.js';

/** `quantization_config` as far as it is looked at. */
export interface QuantisationConfig {
  readonly quant_method?: unknown;
  readonly weight_block_size?: unknown;
  readonly config_groups?: Readonly<
    Record<string, { readonly weights?: Readonly<Record<string, unknown>> | null } | null>
  >;
  readonly [key: string]: unknown;
}

/** The config's outermost entry on quantisation that is not about a vision or audio tower. */
export const quantisationConfig = (config: Checkpoint['config']): QuantisationConfig | undefined =>
  quantisationEntries(config).find(({ path }) => !/vision|audio/.test(path))?.entry;

/** `quant_method` in lower case; '' where there is none. */
export const quantisationMethod = (config: Checkpoint['config']): string =>
  String(quantisationConfig(config)?.quant_method ?? '').toLowerCase();

/** The `weights` of compressed-tensors' groups. */
export const weightSchemes = (config: Checkpoint['config']): ReadonlyArray<Readonly<Record<string, unknown>>> =>
  Object.values(quantisationConfig(config)?.config_groups ?? {}).flatMap((group) =>
    isObject(group?.weights) ? [group.weights] : [],
  );

/** A positive whole number, or undefined. */
export const positive = (value: unknown): number | undefined =>
  Number.isSafeInteger(value) && (value as number) > 0 ? (value as number) : undefined;
