/** Finds a checkpoint's experts from its config and tensor names; the folder's name plays no part. */
import { join } from 'node:path';
import type { TensorInfo } from '../checkpoint/header.js';
import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import { ConfigMismatchError, MissingExpertError, UnequalExpertError, UnknownModelError } from '../errors.js';
import { bailing } from './bailing.js';
import { deepseek, kimiK2 } from './deepseek.js';
import { type ExpertLayer, type Family, type MoeModel, PROJECTIONS, type Projection } from './family.js';
import { qwen3Moe } from './qwen3-moe.js';

const FAMILIES: readonly Family[] = [qwen3Moe, deepseek, kimiK2, bailing];

/** Any other model whose experts have the standard names: convertible to standard weights. */
const generic = (modelType: string, config: Readonly<Record<string, unknown>>): Family => ({
  name: `${modelType} (standard expert names)`,
  modelTypes: [modelType],
  expertCountKey:
    ['num_experts', 'n_routed_experts', 'num_local_experts'].find((key) => key in config) ?? 'num_experts',
  rowsKey: 'moe_intermediate_size',
  nativeArchitecture: undefined,
});

const EXPERT_NAME = /^((?:.+\.)?layers\.(\d+)\.mlp\.)experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight$/;

/** Throws an `InputError` where the experts are incomplete, unequal, or not what the config says. */
export function detectModel(checkpoint: Checkpoint): MoeModel {
  const modelType = String(checkpoint.config.model_type ?? 'unknown');
  const family =
    FAMILIES.find(({ modelTypes }) => modelTypes.includes(modelType)) ?? generic(modelType, checkpoint.config);
  const layers = collectLayers(checkpoint);
  if (layers.length === 0) {
    const sample = [...checkpoint.tensors.keys()].filter((name) => /expert|mlp|feed_forward/.test(name)).slice(0, 3);
    throw new UnknownModelError(
      checkpoint.folder,
      `Its model_type is "${modelType}"${sample.length ? `, its tensors are like ${sample.join(', ')}` : ''}; expected names like model.layers.0.mlp.experts.0.gate_proj.weight.`,
    );
  }
  checkConfig(checkpoint, family, layers);
  return { family, layers };
}

type Slots = Record<Projection, Array<TensorInfo | undefined>>;

function collectLayers(checkpoint: Checkpoint): ExpertLayer[] {
  const found = new Map<string, { layer: number; slots: Slots }>();
  for (const tensor of checkpoint.tensors.values()) {
    const match = EXPERT_NAME.exec(tensor.name);
    if (!match) continue;
    const [, prefix, layer, expert, projection] = match as unknown as [string, string, string, string, Projection];
    const entry = found.get(prefix) ?? { layer: Number(layer), slots: { gate_proj: [], up_proj: [], down_proj: [] } };
    found.set(prefix, entry);
    entry.slots[projection][Number(expert)] = tensor;
  }
  const hidden = checkpoint.config.num_hidden_layers;
  return (
    [...found]
      // A multi-token-prediction module has experts too, at an index past the last layer: it passes through untouched.
      .filter(([, { layer }]) => typeof hidden !== 'number' || layer < hidden)
      .map(([prefix, { layer, slots }]) => ({ layer, prefix, experts: completeExperts(checkpoint, prefix, slots) }))
      .sort((a, b) => a.layer - b.layer)
  );
}

function completeExperts(checkpoint: Checkpoint, prefix: string, slots: Slots): Record<Projection, TensorInfo[]> {
  const count = Math.max(...PROJECTIONS.map((projection) => slots[projection].length));
  const complete = (projection: Projection): TensorInfo[] =>
    Array.from({ length: count }, (_, expert) => {
      const tensor = slots[projection][expert];
      if (!tensor) throw new MissingExpertError(`${prefix}experts.${expert}.${projection}.weight`, checkpoint.folder);
      checkAlike(tensor, slots[projection][0] as TensorInfo);
      return tensor;
    });
  return { gate_proj: complete('gate_proj'), up_proj: complete('up_proj'), down_proj: complete('down_proj') };
}

function checkAlike(tensor: TensorInfo, first: TensorInfo): void {
  if (tensor.shape.length !== 2)
    throw new UnequalExpertError(tensor.name, tensor.file, `has shape [${tensor.shape}], not a matrix`);
  if (String(tensor.shape) !== String(first.shape)) {
    throw new UnequalExpertError(
      tensor.name,
      tensor.file,
      `has shape [${tensor.shape}], expert 0 has [${first.shape}]`,
    );
  }
  if (tensor.dtype !== first.dtype) {
    throw new UnequalExpertError(tensor.name, tensor.file, `is ${tensor.dtype}, expert 0 is ${first.dtype}`);
  }
}

function checkConfig({ folder, config }: Checkpoint, family: Family, layers: readonly ExpertLayer[]): void {
  const expect = (key: string, found: number): void => {
    const configured = config[key];
    if (typeof configured === 'number' && configured !== found) {
      throw new ConfigMismatchError(join(folder, CONFIG_FILE), key, configured, found);
    }
  };
  for (const { experts } of layers) {
    const [rows, cols] = (experts.gate_proj[0] as TensorInfo).shape as [number, number];
    expect(family.expertCountKey, experts.gate_proj.length);
    expect(family.rowsKey, rows);
    expect('hidden_size', cols);
  }
}
