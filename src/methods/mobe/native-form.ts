/** MoBE's native checkpoint: the tensor names and config keys that the reference's modelling files read. */
import { join } from 'node:path';
import { CONFIG_FILE } from '../../checkpoint/open-checkpoint.js';
import { ConfigMismatchError, MissingExpertError, UnequalExpertError } from '../../errors.js';
import { factorsEntry, type GroupNumber, SHORT_NAMES } from '../../models/native.js';
import type { NativeFactors, NativePlace, NativeSource } from '../method.js';
import { ACTIVATIONS, type Activation, type Problem } from './problem.js';

export const native: NativeFactors<Problem> = {
  marker: /^((?:.+\.)?(?:layers|blocks)\.(\d+)\.(?:.+\.)?)B_(gate|up|down)(?:_(\d+))?$/,
  example: 'model.layers.0.mlp.B_gate',
  names: (place, experts) => ({
    shared: { B: basesName(place), alpha: coefficientsName(place) },
    experts: Array.from({ length: experts }, (_, i) => ({ A: expertName(place, place.group * experts + i) })),
  }),
  problem(place, bases, { tensors, folder, config }) {
    const name = coefficientsName(place);
    const coefficients = tensors.get(name);
    if (!coefficients) throw new MissingExpertError(name, folder);
    const [m, r, d] = bases.shape as [number, number, number];
    const [n, columns] = coefficients.shape as [number, number];
    const { file } = coefficients;
    if (bases.shape.length !== 3)
      throw new UnequalExpertError(bases.name, bases.file, `has shape [${bases.shape}], not [m, r, d]`);
    if (columns !== m) throw new UnequalExpertError(name, file, `has shape [${coefficients.shape}] for ${m} bases`);
    // Each expert has a tensor, so there cannot be more experts than tensors. A damaged shape could claim any number.
    if (coefficients.shape.includes(0) || bases.shape.includes(0) || n > tensors.size)
      throw new UnequalExpertError(
        name,
        file,
        `has shape [${coefficients.shape}], its bases [${bases.shape}], in a checkpoint of ${tensors.size} tensors`,
      );
    const first = expertName(place, place.group * n);
    const A = tensors.get(first);
    if (!A) throw new MissingExpertError(first, folder);
    const [p] = A.shape as [number];
    return { experts: n, rows: p, cols: d, bases: m, rank: r, activation: activationOf(place, { folder, config }) };
  },
  sizes: ({ bases, rank, activation }, groups) => ({ bases: bases * groups, rank, groups, activation }),
  common: ({ bases, activation }, groups) => ({ num_B: bases * groups, activation }),
};

const suffix = ({ group, groups }: GroupNumber): string => (groups === 1 ? '' : `_${group}`);

/** `B_gate`: a group's bases before the activation, [m, r, d]. If the layer has several groups: `B_gate_0`, `B_gate_1`, … */
const basesName = (place: NativePlace): string => `${place.prefix}B_${SHORT_NAMES[place.projection]}${suffix(place)}`;

/** `W_gate`: the coefficients α (not logits), [n, m]. */
const coefficientsName = (place: NativePlace): string =>
  `${place.prefix}W_${SHORT_NAMES[place.projection]}${suffix(place)}`;

/** `experts.{j}.gate_proj.weight`: A·σ, [p, r], whatever the source calls the dense weight. */
const expertName = ({ prefix, projection }: NativePlace, expert: number): string =>
  `${prefix}experts.${expert}.${projection}.weight`;

/**
 * The activation in a config. Throws for an unknown name; the reference's modelling files take any name except "tanh" for SiLU.
 * Checkpoints of format_version 1 have one for all layers.
 */
function activationOf(place: NativePlace, { folder, config }: Pick<NativeSource, 'folder' | 'config'>): Activation {
  const found = factorsEntry(config, place)?.activation ?? config.activation ?? 'silu';
  const activation = ACTIVATIONS.find((known) => known === found);
  if (!activation) throw new ConfigMismatchError(join(folder, CONFIG_FILE), 'activation', found, ACTIVATIONS);
  return activation;
}
