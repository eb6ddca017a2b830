/**
 * Changes the entries on quantisation in a result's config files. They are removed if nothing is quantised any more. Otherwise
 * they list the modules that are no longer quantised.
 */
import { type QuantisationEntry, quantisationEntries } from '../checkpoint/quantisation-entries.js';
import { parseJsonObject, readText } from '../checkpoint/read-json.js';
import { type QuantisableTensor, seemsQuantised } from '../checkpoint/seems-quantised.js';
import { listSideFiles } from '../checkpoint/side-files.js';
import type { MoeModel } from '../models/family.js';
import { type ConfigChanges, editConfig } from '../models/native.js';
import type { ConversionPlan } from './conversion-plan.js';
import { packedConfig } from './packed-weights.js';

/** ModelOpt's config beside config.json. vLLM and TensorRT-LLM read it first. */
export const QUANT_CONFIG_FILE = 'hf_quant_config.json';

/** The change to an entry on quantisation. */
type Outcome =
  /** The entry stays, because none of its tensors was decoded. */
  | 'keep'
  /** The entry is removed, because nothing is quantised any more. */
  | 'remove'
  /** These modules are no longer quantised, others are. */
  | { readonly plain: readonly string[] };

type Converted = Pick<ConversionPlan, 'groups' | 'quantised' | 'layout'>;

function outcome({ groups, quantised, layout }: Converted, { layers }: Pick<MoeModel, 'layers'>): Outcome {
  if (quantised.before === 0) {
    // Tensors in a format that mobe does not know are copied as they are.
    const tensors: readonly QuantisableTensor[] = layout.shards.flatMap((shard) => shard.tensors);
    return tensors.some(seemsQuantised) ? 'keep' : 'remove';
  }
  if (quantised.after === 0) return 'remove';
  const converted = new Set(groups.flatMap(({ layer, forms }) => (forms ? [] : layer)));
  const plain = layers.filter(({ layer }) => converted.has(layer)).map(({ prefix }) => `${prefix}experts`);
  return plain.length ? { plain } : 'keep';
}

/** The changes to `config.json`: to every entry on quantisation, at any level. */
export function quantisationChanges(plan: ConversionPlan, model: Pick<MoeModel, 'layers'>): ConfigChanges {
  const entries = quantisationEntries(plan.source.config);
  const packed = packedConfig(plan.groups, model);
  if (packed) return { ...removed(entries), quantization_config: packed };
  const result = entries.length ? outcome(plan, model) : 'keep';
  if (result === 'keep') return {};
  if (result === 'remove') return removed(entries);
  return Object.assign({}, ...entries.map((entry) => exclusions(entry, result.plain)));
}

const removed = (entries: readonly QuantisationEntry[]): ConfigChanges =>
  Object.fromEntries(entries.map(({ path }) => [path, undefined]));

/**
 * The changes to the source's `hf_quant_config.json` for its copy in the result. It is left out if nothing is quantised any more.
 */
export function quantConfigFileChanges(
  plan: Converted,
  model: Pick<MoeModel, 'layers'>,
  file: Readonly<Record<string, unknown>>,
): 'leave out' | ConfigChanges {
  const result = packedConfig(plan.groups, model) ? 'remove' : outcome(plan, model);
  if (result === 'keep') return {};
  if (result === 'remove') return 'leave out';
  const entry = file.quantization;
  if (typeof entry !== 'object' || entry === null || Array.isArray(entry)) return {};
  return exclusions(
    { path: 'quantization', entry: { quant_method: 'modelopt', exclude_modules: [], ...entry } },
    result.plain,
  );
}

/** The keys of lists of modules in an entry. Loaders read the list of the entry's format. */
const LISTS = ['ignore', 'modules_to_not_convert', 'exclude_modules', 'ignored_layers'] as const;

/** Adds modules to the lists that an entry has. If it has none, adds the list that the loaders of its format read. */
function exclusions({ path, entry }: QuantisationEntry, modules: readonly string[]): ConfigChanges {
  if (entry.quant_method === 'gptq') {
    // GPTQModel has no list. A pattern in `dynamic` that begins with "-:" excludes modules.
    const patterns = modules.map((module) => [`-:${escaped(module)}\\..*`, {}] as const);
    return { [`${path}.dynamic`]: { ...(entry.dynamic as object | undefined), ...Object.fromEntries(patterns) } };
  }
  const [usual, name] = wordsOf(entry);
  const present = LISTS.filter((key) => Array.isArray(entry[key]));
  const keys = present.length ? present : [usual];
  const added = modules.map(name);
  return Object.fromEntries(
    keys.map((key) => [`${path}.${key}`, [...((entry[key] as unknown[] | undefined) ?? []), ...added]]),
  );
}

const escaped = (module: string): string => module.replaceAll('.', '\\.');

/** The list that loaders of a format read, and the form in which it names a module and all that is below it. */
function wordsOf({
  quant_method: method,
  config_groups: groups,
}: QuantisationEntry['entry']): [string, (module: string) => string] {
  // vLLM and TensorRT-LLM match with wildcards; config.json has `ignore`, hf_quant_config.json `exclude_modules`.
  if (method === 'modelopt') return ['ignore', (module) => `${module}*`];
  // compressed-tensors matches whole names. After "re:" it matches a pattern from the start of the name.
  if (groups) return ['ignore', (module) => `re:${escaped(module)}\\..*`];
  // In transformers and vLLM's FP8, a module's name stands for all that is below it.
  return ['modules_to_not_convert', (module) => module];
}

/**
 * The side files that differ between the source and the result, by their path in the result. The value is their new text, or
 * undefined if they are left out.
 */
export async function editedSideFiles(
  plan: ConversionPlan,
  model: Pick<MoeModel, 'layers'>,
): Promise<ReadonlyMap<string, string | undefined>> {
  const { source } = plan;
  const file = (await listSideFiles(source)).find(({ target }) => target === QUANT_CONFIG_FILE);
  if (!file) return new Map();
  const text = await readText(file.source, source.files);
  const changes = quantConfigFileChanges(plan, model, parseJsonObject(text, file.source));
  return new Map([[QUANT_CONFIG_FILE, changes === 'leave out' ? undefined : editConfig(text, changes)]]);
}
