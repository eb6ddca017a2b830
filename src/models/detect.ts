/** Finds a checkpoint's experts from its config and tensor names. The folder's name is not used. */
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { describeEncoding } from '../checkpoint/encoding.js';
import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { MissingExpertError, MissingLayerError, UnequalExpertError, UnsupportedLayoutError } from '../errors.js';
import { bailing, bailingV2 } from './bailing.js';
import { deepseekV2, deepseekV3, kimiK2 } from './deepseek.js';
import { expertsOf } from './expert-names.js';
import {
  type Config,
  type ExpertLayer,
  type Family,
  type MoeModel,
  numberOf,
  PROJECTIONS,
  type Projection,
} from './family.js';
import { glm4Moe } from './glm.js';
import { languageConfig } from './language-config.js';
import { mixtral } from './mixtral.js';
import { olmoe } from './olmoe.js';
import { qwen2Moe, qwen3Moe } from './qwen-moe.js';
import { unknownExperts } from './unknown-experts.js';

export { languageConfig } from './language-config.js';

export const FAMILIES: readonly Family[] = [
  qwen3Moe,
  qwen2Moe,
  deepseekV2,
  deepseekV3,
  kimiK2,
  bailing,
  bailingV2,
  glm4Moe,
  olmoe,
  mixtral,
];

/** The family of any other model whose experts have known names. It can be converted to standard weights. */
const generic = (modelType: string, config: Config): Family => ({
  name: `${modelType} (standard expert names)`,
  modelTypes: [modelType],
  expertCountKey:
    ['num_experts', 'n_routed_experts', 'num_local_experts'].find((key) => key in config) ?? 'num_experts',
  rowsKey: 'moe_intermediate_size',
});

/**
 * Finds the family and the expert layers. Throws an `InputError` if experts are missing or differ in shape, or if none is known.
 * If the config and the tensors differ, the tensors count.
 */
export function detectModel(checkpoint: Checkpoint): MoeModel {
  const config = languageConfig(checkpoint.config);
  const modelType = String(checkpoint.config.model_type ?? 'unknown');
  const family = FAMILIES.find(({ modelTypes }) => modelTypes.includes(modelType)) ?? generic(modelType, config);
  const layers = collectLayers(checkpoint, config);
  if (layers.length === 0) throw unknownExperts(checkpoint, modelType);
  checkLayers(checkpoint, config, family, layers);
  const notes = configDifferences(config, family, layers);
  if (notes.length === 0 && areAlike(layers)) return { family, layers, notes };
  // The modelling files of a native checkpoint build every layer from the config, so a model that differs has no native form.
  const { native, ...loadable } = family;
  const name = native ? `${family.name} with layers that are not all as config.json says` : family.name;
  return { family: { ...loadable, name }, layers, notes };
}

type Slots = Record<Projection, Array<StoredMatrix | undefined>>;

function collectLayers(checkpoint: Checkpoint, config: Config): ExpertLayer[] {
  const found = new Map<string, { layer: number; slots: Slots }>();
  for (const tensor of checkpoint.tensors.values()) {
    for (const { prefix, layer, expert, projection, matrix } of expertsOf(tensor, checkpoint)) {
      const entry = found.get(prefix) ?? { layer, slots: { gate_proj: [], up_proj: [], down_proj: [] } };
      found.set(prefix, entry);
      const slots = entry.slots[projection];
      const other = slots[expert]?.place.tensor;
      if (other) throw new UnsupportedLayoutError(tensor.name, tensor.file, `"${other}" holds expert ${expert} too`);
      slots[expert] = matrix;
    }
  }
  const hidden = numberOf(config, 'num_hidden_layers');
  const stack = largestStack([...found.keys()]);
  return (
    [...found]
      // A multi-token-prediction module has experts too, after the last layer or in a stack of its own (`mtp.layers.0` in
      // Qwen3-Next). It is left unchanged.
      .filter(([prefix, { layer }]) => stackOf(prefix) === stack && (hidden === undefined || layer < hidden))
      .map(([prefix, { layer, slots }]) => ({ layer, prefix, experts: completeExperts(checkpoint, prefix, slots) }))
      .sort((a, b) => a.layer - b.layer)
  );
}

/** The part of a layer's prefix before `layers.{i}.`. */
const stackOf = (prefix: string): string => prefix.slice(0, prefix.lastIndexOf('layers.'));

/** The stack with the most expert layers. If two are equal, the first by name: `model` before `mtp`. */
function largestStack(prefixes: readonly string[]): string | undefined {
  const counts = new Map<string, number>();
  for (const prefix of prefixes) counts.set(stackOf(prefix), (counts.get(stackOf(prefix)) ?? 0) + 1);
  const [largest] = [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  return largest?.[0];
}

function completeExperts(checkpoint: Checkpoint, prefix: string, slots: Slots): Record<Projection, StoredMatrix[]> {
  const count = Math.max(...PROJECTIONS.map((projection) => slots[projection].length));
  const complete = (projection: Projection): StoredMatrix[] =>
    Array.from({ length: count }, (_, expert) => {
      const matrix = slots[projection][expert];
      if (!matrix) throw new MissingExpertError(`${prefix}experts.${expert}.${projection}.weight`, checkpoint.folder);
      checkAlike(matrix, slots[projection][0] as StoredMatrix);
      return matrix;
    });
  return { gate_proj: complete('gate_proj'), up_proj: complete('up_proj'), down_proj: complete('down_proj') };
}

function checkAlike({ name, data, rows, cols, encoding }: StoredMatrix, first: StoredMatrix): void {
  if (rows !== first.rows || cols !== first.cols)
    throw new UnequalExpertError(
      name,
      data.file,
      `has shape [${rows},${cols}], expert 0 has [${first.rows},${first.cols}]`,
    );
  if (!isDeepStrictEqual(encoding, first.encoding)) {
    const [own, other] = [describeEncoding(encoding), describeEncoding(first.encoding)];
    throw new UnequalExpertError(name, data.file, `is ${own}, expert 0 is ${other}`);
  }
}

/** Throws if a projection does not fit the others, or if the config gives experts to a layer that has none. */
function checkLayers({ folder }: Checkpoint, config: Config, family: Family, layers: readonly ExpertLayer[]): void {
  for (const { experts } of layers) {
    const [gate, down] = [experts.gate_proj[0], experts.down_proj[0]] as [StoredMatrix, StoredMatrix];
    if (down.rows !== gate.cols || down.cols !== gate.rows)
      throw new UnequalExpertError(
        down.name,
        down.data.file,
        `has shape [${down.rows},${down.cols}], its gate_proj [${gate.rows},${gate.cols}]`,
      );
  }
  const hidden = numberOf(config, 'num_hidden_layers') ?? 0;
  const held = new Set(layers.map(({ layer }) => layer));
  const counts = config[countKey(family, config)];
  for (let layer = 0; family.isMoeLayer && layer < hidden; layer++) {
    const pruned = Array.isArray(counts) && counts[layer] === 0;
    if (family.isMoeLayer(layer, config) && !held.has(layer) && !pruned)
      throw new MissingLayerError(join(folder, CONFIG_FILE), layer);
  }
}

/** The config key with the number of experts. transformers 5 writes `num_local_experts` instead of a family's own key. */
const countKey = ({ expertCountKey }: Family, config: Config): string =>
  expertCountKey in config ? expertCountKey : 'num_local_experts';

/** The number of experts of a layer and the shape of their gate projection. */
const sizesOf = ({ experts: { gate_proj: gate } }: ExpertLayer) => {
  const { rows, cols } = gate[0] as StoredMatrix;
  return { count: gate.length, rows, cols };
};

const areAlike = (layers: readonly ExpertLayer[]): boolean =>
  layers.every((layer) => isDeepStrictEqual(sizesOf(layer), sizesOf(layers[0] as ExpertLayer)));

/**
 * Sentences on entries of the config that differ from the tensors. Experts may be narrower than `hidden_size` (they work in a latent
 * space) or pruned to another number in each layer. The config's number may include zero experts, which have no weights.
 */
function configDifferences(config: Config, family: Family, layers: readonly ExpertLayer[]): string[] {
  const notes: string[] = [];
  const compare = (key: string, what: string, size: (layer: ExpertLayer) => number): void => {
    const configured = numberOf(config, key);
    const other = layers.find((layer) => configured !== undefined && size(layer) !== configured);
    if (other)
      notes.push(
        `${CONFIG_FILE} says "${key}": ${configured}, layer ${other.layer} has ${size(other)} ${what}: the tensors count.`,
      );
  };
  compare(countKey(family, config), 'experts', (layer) => sizesOf(layer).count);
  compare(family.rowsKey, 'rows an expert', (layer) => sizesOf(layer).rows);
  compare('hidden_size', 'columns an expert', (layer) => sizesOf(layer).cols);
  const hidden = numberOf(config, 'num_hidden_layers') ?? 0;
  const dense = layers.find(({ layer }) => layer < hidden && family.isMoeLayer?.(layer, config) === false);
  if (dense)
    notes.push(`${CONFIG_FILE} makes layer ${dense.layer} a dense one, but it has routed experts: the tensors count.`);
  return notes;
}
