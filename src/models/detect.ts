/** Finds a checkpoint's experts from its config and tensor names. The folder's name is not used. */
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import {
  MissingExpertError,
  MissingLayerError,
  NativeCheckpointError,
  UnequalExpertError,
  UnsupportedLayoutError,
} from '../errors.js';
import { bailing, bailingV2 } from './bailing.js';
import { deepseekV2, deepseekV3, kimiK2 } from './deepseek.js';
import { expertsOf, type FoundExpert } from './expert-names.js';
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
import { modelTypeOf, nativeForm } from './native-forms.js';
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

/** Config keys with an expert's rows p. Some configs have both, and the family reads one of them. */
const ROWS_KEYS = ['moe_intermediate_size', 'intermediate_size', 'ffn_hidden_size', 'expert_ffn_hidden_size'];

/** The family of any other model whose experts have known names. It can be converted to standard weights. */
const generic = (modelType: string, config: Config, [layer]: readonly ExpertLayer[]): Family => ({
  name: `${modelType} (standard expert names)`,
  modelTypes: [modelType],
  expertCountKey:
    ['num_experts', 'n_routed_experts', 'num_local_experts', 'moe_num_experts'].find((key) => key in config) ??
    'num_experts',
  rowsKey: ROWS_KEYS.find((key) => layer && config[key] === sizesOf(layer).rows) ?? 'moe_intermediate_size',
});

/**
 * Finds the family and the expert layers. Throws an `InputError` if experts are missing or differ in shape, or if none is known.
 * If the config and the tensors differ, the tensors count.
 */
export function detectModel(checkpoint: Checkpoint): MoeModel {
  if (checkpoint.config.mobe !== undefined) throw new NativeCheckpointError(checkpoint.folder);
  const config = languageConfig(checkpoint.config);
  const modelType = modelTypeOf(checkpoint.config);
  const { layers, notes: left } = collectLayers(checkpoint, config);
  if (layers.length === 0) throw unknownExperts(checkpoint, modelType);
  const family =
    FAMILIES.find(({ modelTypes }) => modelTypes.includes(modelType)) ?? generic(modelType, config, layers);
  checkLayers(checkpoint, config, family, layers);
  const differences = configDifferences(config, family, layers);
  const notes = [...left, ...differences];
  const native = nativeForm(checkpoint.config);
  if (!native) return { family, layers, notes };
  if (differences.length === 0 && areAlike(layers)) return { family: { ...family, native }, layers, notes };
  // transformers builds every layer from the config, so a model that differs has no native form.
  return {
    family: { ...family, name: `${family.name} with layers that are not all as config.json says` },
    layers,
    notes,
    differences,
  };
}

type Slots = Record<Projection, Array<StoredMatrix | undefined>>;

/** The expert tensors with one prefix. */
interface Site extends Pick<FoundExpert, 'stack' | 'layer' | 'prefix'> {
  readonly slots: Slots;
  /** The number of weights. */
  weights: number;
}

function collectLayers(checkpoint: Checkpoint, config: Config): { layers: ExpertLayer[]; notes: string[] } {
  const sites = new Map<string, Site>();
  for (const tensor of checkpoint.tensors.values()) {
    for (const { prefix, stack, layer, expert, projection, matrix } of expertsOf(tensor, checkpoint)) {
      const empty = { gate_proj: [], up_proj: [], down_proj: [] };
      const site = sites.get(prefix) ?? { prefix, stack, layer, slots: empty, weights: 0 };
      sites.set(prefix, site);
      const slots = site.slots[projection];
      const other = slots[expert]?.place.tensor;
      if (other) throw new UnsupportedLayoutError(tensor.name, tensor.file, `"${other}" holds expert ${expert} too`);
      slots[expert] = matrix;
      site.weights += matrix.rows * matrix.cols;
    }
  }
  const hidden = numberOf(config, 'num_hidden_layers');
  const stack = largestStack([...sites.values()]);
  // A multi-token-prediction module has experts too, after the last layer or in a stack of its own (`mtp.layers.0` in
  // Qwen3-Next). It is left unchanged.
  const inStack = [...sites.values()].filter((it) => it.stack === stack && (hidden === undefined || it.layer < hidden));
  const largest = new Map<number, Site>();
  for (const site of inStack) {
    const known = largest.get(site.layer);
    if (!known || site.weights > known.weights) largest.set(site.layer, site);
  }
  const chosen = [...largest.values()].sort((a, b) => a.layer - b.layer);
  const gated = chosen.some(({ slots }) => slots.gate_proj.length > 0);
  const inLayer = inStack.find((site) => largest.get(site.layer) !== site);
  const elsewhere = [...sites.values()].find((it) => it.stack !== stack && !PREDICTOR.test(it.stack));
  return {
    layers: chosen.map(({ layer, prefix, slots }) => ({
      layer,
      prefix,
      experts: completeExperts(checkpoint, config, prefix, slots, gated),
    })),
    notes: [
      ...(inLayer
        ? [
            `layer ${inLayer.layer} has experts in two modules. Those in ${inLayer.prefix} and its like stay as they are.`,
          ]
        : []),
      ...(elsewhere ? [`the experts in ${elsewhere.stack}layers stay as they are.`] : []),
    ],
  };
}

/** The stacks of multi-token-prediction modules. */
const PREDICTOR = /(?:^|\.)mtp/;

/** The stack with the most expert weights. If two are equal, the first by name: `model` before `mtp`. */
function largestStack(sites: readonly Site[]): string | undefined {
  const sums = new Map<string, number>();
  for (const { stack, weights } of sites) sums.set(stack, (sums.get(stack) ?? 0) + weights);
  const [largest] = [...sums].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  return largest?.[0];
}

/** @param gated whether experts have a gate_proj. Those of Nemotron-H have two matrices. */
function completeExperts(
  checkpoint: Checkpoint,
  config: Config,
  prefix: string,
  slots: Slots,
  gated: boolean,
): Record<Projection, StoredMatrix[]> {
  const count = ownExperts(config, slots);
  const complete = (projection: Projection): StoredMatrix[] =>
    Array.from({ length: count }, (_, expert) => {
      const matrix = slots[projection][expert];
      if (!matrix) throw new MissingExpertError(`${prefix}experts.${expert}.${projection}.weight`, checkpoint.folder);
      checkAlike(matrix, slots[projection][0] as StoredMatrix);
      return matrix;
    });
  return {
    gate_proj: gated ? complete('gate_proj') : [],
    up_proj: complete('up_proj'),
    down_proj: complete('down_proj'),
  };
}

/** The number of a layer's experts, without those that have no weights or work on pictures. */
function ownExperts(config: Config, slots: Slots): number {
  const most = Math.max(...PROJECTIONS.map((projection) => slots[projection].length));
  // transformers saves LongCat's zero experts with gate and up, which it never uses, and without down.
  const zeros = numberOf(config, 'zero_expert_num') ?? 0;
  if (zeros > 0 && slots.down_proj.length === most - zeros) return most - zeros;
  // ERNIE-4.5-VL numbers its text experts first, and then narrower ones for pictures. The config may have one number for both.
  const { moe_num_experts: counts, moe_intermediate_size: widths } = config;
  if (!Array.isArray(widths) || widths.length !== 2) return most;
  const [text, pictures] = Array.isArray(counts) ? counts : [counts, counts];
  return text > 0 && text + pictures === most ? text : most;
}

function checkAlike({ name, data, rows, cols }: StoredMatrix, first: StoredMatrix): void {
  if (rows !== first.rows || cols !== first.cols)
    throw new UnequalExpertError(
      name,
      data.file,
      `has shape [${rows},${cols}], expert 0 has [${first.rows},${first.cols}]`,
    );
}

/** Throws if a projection does not fit the others, or if the config gives experts to a layer that has none. */
function checkLayers({ folder }: Checkpoint, config: Config, family: Family, layers: readonly ExpertLayer[]): void {
  for (const { experts } of layers) {
    const down = experts.down_proj[0] as StoredMatrix;
    for (const projection of ['gate_proj', 'up_proj'] as const) {
      const [other] = experts[projection];
      if (other && (down.rows !== other.cols || down.cols !== other.rows))
        throw new UnequalExpertError(
          down.name,
          down.data.file,
          `has shape [${down.rows},${down.cols}], its ${projection} [${other.rows},${other.cols}]`,
        );
    }
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

/** The number of experts of a layer, and the shape of their gate and up projections. */
export const sizesOf = ({ experts: { up_proj: up } }: ExpertLayer) => {
  const { rows, cols } = up[0] as StoredMatrix;
  return { count: up.length, rows, cols };
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
  const width = ['moe_latent_size', 'moe_hidden_size'].find((key) => numberOf(config, key) !== undefined);
  compare(width ?? 'hidden_size', 'columns an expert', (layer) => sizesOf(layer).cols);
  const hidden = numberOf(config, 'num_hidden_layers') ?? 0;
  const dense = layers.find(({ layer }) => layer < hidden && family.isMoeLayer?.(layer, config) === false);
  if (dense)
    notes.push(`${CONFIG_FILE} makes layer ${dense.layer} a dense one, but it has routed experts: the tensors count.`);
  return notes;
}
