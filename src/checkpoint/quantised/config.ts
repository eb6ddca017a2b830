/** Reads the facts about a quantisation that only `config.json` has, because tensors do not show them. */
import type { Checkpoint } from '../open-checkpoint.js';
import { isObject, quantisationEntries } from '../quantisation-entries.js';

/** The parts of `quantization_config` that are read. */
export interface QuantisationConfig {
  readonly quant_method?: unknown;
  readonly weight_block_size?: unknown;
  readonly config_groups?: Readonly<
    Record<string, { readonly weights?: Readonly<Record<string, unknown>> | null } | null>
  >;
  readonly [key: string]: unknown;
}

/** The outermost entry on quantisation that does not belong to a vision or audio tower. */
export const quantisationConfig = (config: Checkpoint['config']): QuantisationConfig | undefined =>
  quantisationEntries(config).find(({ path }) => !/vision|audio/.test(path))?.entry;

/** Whether the config asks for scales that are powers of two, as DeepSeek-V3.1 has them in F32: the kernels of its loaders expect it. */
export const wantsPowersOfTwo = (config: Checkpoint['config']): boolean =>
  String(quantisationConfig(config)?.scale_fmt ?? '').toLowerCase() === 'ue8m0';

/** `quant_method` in lower case; '' if there is none. */
export const quantisationMethod = (config: Checkpoint['config']): string =>
  String(quantisationConfig(config)?.quant_method ?? '').toLowerCase();

/** The `weights` of each of compressed-tensors' `config_groups`. */
export const weightSchemes = (config: Checkpoint['config']): ReadonlyArray<Readonly<Record<string, unknown>>> =>
  Object.values(quantisationConfig(config)?.config_groups ?? {}).flatMap((group) =>
    isObject(group?.weights) ? [group.weights] : [],
  );

/** A positive whole number, or undefined. */
export const positive = (value: unknown): number | undefined =>
  Number.isSafeInteger(value) && (value as number) > 0 ? (value as number) : undefined;
