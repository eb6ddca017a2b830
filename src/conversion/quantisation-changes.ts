/** What a result's files say of quantisation: nothing where its weights are plain, else which modules no longer are. */
import { type QuantisationEntry, quantisationEntries } from '../checkpoint/quantisation-entries.js';
import { parseJsonObject, readText } from '../checkpoint/read-json.js';
import { type QuantisableTensor, seemsQuantised } from '../checkpoint/seems-quantised.js';
import { listSideFiles } from '../checkpoint/side-files.js';
import type { MoeModel } from '../models/family.js';
import { type ConfigChanges, editConfig } from '../models/native.js';
import type { ConversionPlan } from './conversion-plan.js';

/** ModelOpt's, beside config.json: vLLM and TensorRT-LLM read it first. */
export const QUANT_CONFIG_FILE = 'hf_quant_config.json';

/** What has to happen to an entry on quantisation. */
type Outcome =
  /** It stays: none of its tensors was decoded. */
  | 'keep'
  /** It goes: nothing is quantised any more. */
  | 'remove'
  /** These modules are no longer quantised, others are. */
  | { readonly plain: readonly string[] };

type Converted = Pick<ConversionPlan, 'groups' | 'quantised' | 'layout'>;

function outcome({ groups, quantised, layout }: Converted, { layers }: Pick<MoeModel, 'layers'>): Outcome {
  if (quantised.before === 0) {
    // Whatever is quantised passes through, in a format that mobe does not know.
    const tensors: readonly QuantisableTensor[] = layout.shards.flatMap((shard) => shard.tensors);
    return tensors.some(seemsQuantised) ? 'keep' : 'remove';
  }
  if (quantised.after === 0) return 'remove';
  const converted = new Set(groups.map(({ layer }) => layer));
  const plain = layers.filter(({ layer }) => converted.has(layer)).map(({ prefix }) => `${prefix}experts`);
  return plain.length ? { plain } : 'keep';
}

/** Changes of `config.json`: of every entry on quantisation, at any level. */
export function quantisationChanges(plan: ConversionPlan, model: Pick<MoeModel, 'layers'>): ConfigChanges {
  const entries = quantisationEntries(plan.source.config);
  const result = entries.length ? outcome(plan, model) : 'keep';
  if (result === 'keep') return {};
  if (result === 'remove') return Object.fromEntries(entries.map(({ path }) => [path, undefined]));
  return Object.assign({}, ...entries.map((entry) => exclusions(entry, result.plain)));
}

/**
 * What becomes of the source's `hf_quant_config.json`: it is left out where nothing is quantised any more, and else a copy with
 * these changes.
 */
export function quantConfigFileChanges(
  plan: Converted,
  model: Pick<MoeModel, 'layers'>,
  file: Readonly<Record<string, unknown>>,
): 'leave out' | ConfigChanges {
  const result = outcome(plan, model);
  if (result === 'keep') return {};
  if (result === 'remove') return 'leave out';
  const entry = file.quantization;
  if (typeof entry !== 'object' || entry === null || Array.isArray(entry)) return {};
  return exclusions(
    { path: 'quantization', entry: { quant_method: 'modelopt', exclude_modules: [], ...entry } },
    result.plain,
  );
}

/** Lists of modules that an entry may have; loaders read the one of its format. */
const LISTS = ['ignore', 'modules_to_not_convert', 'exclude_modules', 'ignored_layers'] as const;

/** The modules added to the lists that an entry has, or to the one that the loaders of its format read. */
function exclusions({ path, entry }: QuantisationEntry, modules: readonly string[]): ConfigChanges {
  if (entry.quant_method === 'gptq') {
    // GPTQModel has no list: "-:" before a pattern leaves a module out.
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

/** The list that loaders of a format read, and how they match the modules in it. */
function wordsOf({
  quant_method: method,
  config_groups: groups,
}: QuantisationEntry['entry']): [string, (module: string) => string] {
  // vLLM and TensorRT-LLM match with wildcards; config.json has `ignore`, hf_quant_config.json `exclude_modules`.
  if (method === 'modelopt') return ['ignore', (module) => `${module}*`];
  // compressed-tensors matches whole names, or what "re:" begins from the start of the name.
  if (groups) return ['ignore', (module) => `re:${escaped(module)}\\..*`];
  // transformers and vLLM's FP8 take a module's name for all that is below it.
  return ['modules_to_not_convert', (module) => module];
}

/**
 * Side files that a result has otherwise than its source, by their place in it: their new text, or undefined where they are left
 * out.
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
