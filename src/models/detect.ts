/** Finds a checkpoint's experts from its config and tensor names. The folder's name is not used. */
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { describeEncoding } from '../checkpoint/encoding.js';
import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import {
  ConfigMismatchError,
  MissingExpertError,
  MissingLayerError,
  UnequalExpertError,
  UnknownModelError,
  UnsupportedLayoutError,
} from '../errors.js';
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
import { mixtral } from './mixtral.js';
import { olmoe } from './olmoe.js';
import { qwen2Moe, qwen3Moe } from './qwen-moe.js';

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

/** The config of the language model. In a multimodal model it is nested in `text_config`. */
export const languageConfig = (config: Config): Config =>
  typeof config.text_config === 'object' && config.text_config !== null
    ? { ...config, ...(config.text_config as Config) }
    : config;

/**
 * Finds the family and the expert layers. Throws an `InputError` if experts are missing, differ in shape, or contradict the
 * config.
 */
export function detectModel(checkpoint: Checkpoint): MoeModel {
  const config = languageConfig(checkpoint.config);
  const modelType = String(checkpoint.config.model_type ?? 'unknown');
  const family = FAMILIES.find(({ modelTypes }) => modelTypes.includes(modelType)) ?? generic(modelType, config);
  const layers = collectLayers(checkpoint, config);
  if (layers.length === 0) {
    const sample = [...checkpoint.tensors.keys()]
      .filter((name) => /expert|mlp|feed_forward|moe/.test(name))
      .slice(0, 3);
    throw new UnknownModelError(
      checkpoint.folder,
      `Its model_type is "${modelType}"${sample.length ? `, its tensors are like ${sample.join(', ')}` : ''}; expected names like model.layers.0.mlp.experts.0.gate_proj.weight.`,
    );
  }
  checkConfig(checkpoint, config, family, layers);
  return { family, layers };
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
      checkConvertible(matrix);
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

/** A conversion reads rows that follow each other in the file, and writes experts row by row. */
function checkConvertible({ data, encoding, place }: StoredMatrix): void {
  if (encoding.kind === 'view')
    throw new UnsupportedLayoutError(
      place.tensor,
      data.file,
      `they are ${describeEncoding(encoding)}${place.steps ? ', transposed or interleaved' : ''}, which mobe decodes but does not convert yet`,
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

function checkConfig({ folder }: Checkpoint, config: Config, family: Family, layers: readonly ExpertLayer[]): void {
  const file = join(folder, CONFIG_FILE);
  const expect = (key: string, found: number): void => {
    const configured = numberOf(config, key);
    if (configured !== undefined && configured !== found) throw new ConfigMismatchError(file, key, configured, found);
  };
  // transformers 5 writes `num_local_experts` instead of a family's own key.
  const countKey = family.expertCountKey in config ? family.expertCountKey : 'num_local_experts';
  for (const { experts } of layers) {
    const [gate, down] = [experts.gate_proj[0], experts.down_proj[0]] as [StoredMatrix, StoredMatrix];
    expect(countKey, experts.gate_proj.length);
    expect(family.rowsKey, gate.rows);
    expect('hidden_size', gate.cols);
    if (down.rows !== gate.cols || down.cols !== gate.rows)
      throw new UnequalExpertError(
        down.name,
        down.data.file,
        `has shape [${down.rows},${down.cols}], its gate_proj [${gate.rows},${gate.cols}]`,
      );
  }
  const hidden = numberOf(config, 'num_hidden_layers') ?? 0;
  const held = new Set(layers.map(({ layer }) => layer));
  for (let layer = 0; family.isMoeLayer && layer < hidden; layer++) {
    const expected = family.isMoeLayer(layer, config);
    if (expected !== held.has(layer)) throw new MissingLayerError(file, layer, expected);
  }
}
