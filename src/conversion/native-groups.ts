/** Finds the groups of a native MoBE checkpoint: the way back from its tensors to their plan. */
import { join } from 'node:path';
import { isFloatDtype } from '../checkpoint/dtype.js';
import type { TensorInfo } from '../checkpoint/header.js';
import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import {
  ConfigMismatchError,
  MissingExpertError,
  UnequalExpertError,
  UnknownModelError,
  UnsupportedDtypeError,
} from '../errors.js';
import { ACTIVATIONS, type Activation } from '../methods/mobe/problem.js';
import type { Projection } from '../models/family.js';
import { BASES_NAME, coefficientsName, expertName } from '../models/native.js';
import type { GroupPlan } from './group-plan.js';

/** What the name of a group's bases says of it. */
interface Named extends Pick<GroupPlan, 'layer' | 'projection' | 'group' | 'groups'> {
  readonly prefix: string;
  readonly bases: TensorInfo;
}

/** The groups, their `experts` being the A tensors. Throws where there are none or a part of one is missing. */
export function findNativeGroups(checkpoint: Checkpoint): GroupPlan[] {
  const layers = new Map<string, Array<Omit<Named, 'groups'> & { numbered: boolean }>>();
  for (const bases of checkpoint.tensors.values()) {
    const match = BASES_NAME.exec(bases.name);
    if (!match) continue;
    const [, prefix, layer, short, number] = match as unknown as [string, string, string, string, string | undefined];
    const named = {
      prefix,
      layer: Number(layer),
      projection: `${short}_proj` as Projection,
      group: Number(number ?? 0),
      numbered: number !== undefined,
      bases,
    };
    const key = `${prefix}${short}`;
    const parts = layers.get(key);
    if (parts) parts.push(named);
    else layers.set(key, [named]);
  }
  if (layers.size === 0) {
    throw new UnknownModelError(
      checkpoint.folder,
      'It has no tensors like model.layers.0.mlp.B_gate: it is not a native MoBE checkpoint.',
    );
  }
  return [...layers.values()].flatMap((parts) => {
    const last = parts.reduce((most, { group }) => Math.max(most, group), 0);
    const groups = parts.some(({ numbered }) => numbered) ? 1 + last : 1;
    if (parts.length !== groups) throw incomplete(parts, checkpoint);
    return parts.map((part) => nativeGroup(checkpoint, { ...part, groups }));
  });
}

function incomplete(parts: ReadonlyArray<{ bases: TensorInfo; group: number }>, checkpoint: Checkpoint) {
  const held = new Set(parts.map(({ group }) => group));
  let missing = 0;
  while (held.has(missing)) missing++;
  const name = parts[0]?.bases.name ?? '';
  return new MissingExpertError(name.replace(/\d+$/, String(missing)), checkpoint.folder);
}

function nativeGroup(checkpoint: Checkpoint, named: Named): GroupPlan {
  const { prefix, layer, projection, bases, group, groups } = named;
  const tensor = (name: string): TensorInfo => {
    const found = checkpoint.tensors.get(name);
    if (!found) throw new MissingExpertError(name, checkpoint.folder);
    return found;
  };
  const coefficients = tensor(coefficientsName(prefix, projection, named));
  const [m, r, d] = bases.shape as [number, number, number];
  const [n, columns] = coefficients.shape as [number, number];
  if (bases.shape.length !== 3)
    throw new UnequalExpertError(bases.name, bases.file, `has shape [${bases.shape}], not [m, r, d]`);
  if (columns !== m)
    throw new UnequalExpertError(
      coefficients.name,
      coefficients.file,
      `has shape [${coefficients.shape}] for ${m} bases`,
    );
  // Each expert is a tensor, so there are fewer; a damaged shape could ask for any number.
  if (coefficients.shape.includes(0) || bases.shape.includes(0) || n > checkpoint.tensors.size)
    throw new UnequalExpertError(
      coefficients.name,
      coefficients.file,
      `has shape [${coefficients.shape}], its bases [${bases.shape}], in a checkpoint of ${checkpoint.tensors.size} tensors`,
    );
  const { dtype } = bases;
  if (!isFloatDtype(dtype)) throw new UnsupportedDtypeError(bases.name, bases.file, dtype);
  const names = Array.from({ length: n }, (_, i) => expertName({ prefix }, group * n + i, projection));
  const factors = names.map(tensor);
  const [p] = (factors[0] as TensorInfo).shape as [number];
  const experts = factors.map(({ name, file, shape, dtype: own, start, end }): StoredMatrix => {
    if (String(shape) !== String([p, r]))
      throw new UnequalExpertError(name, file, `has shape [${shape}], expected [${p},${r}]`);
    if (own !== dtype) throw new UnequalExpertError(name, file, `is ${own}, its bases are ${dtype}`);
    const place = { tensor: name, element: 0 };
    // The weights it stands for: that is what it is to be replaced by.
    const [rows, cols] = projection === 'down_proj' ? [d, p] : [p, d];
    return { name, rows, cols, encoding: { kind: 'float', dtype }, data: { file, start, end }, place };
  });
  const [rows, cols] = projection === 'down_proj' ? [d, p] : [p, d];
  return {
    layer,
    projection,
    group,
    groups,
    problem: { experts: n, rows: p, cols: d, bases: m, rank: r, activation: activationOf(checkpoint) },
    experts,
    format: { rows, cols, encoding: { kind: 'float', dtype }, transposed: projection === 'down_proj' },
    dtype,
    names: { bases: bases.name, coefficients: coefficients.name, experts: names },
  };
}

/** The reference's modelling files read anything but "tanh" as SiLU; here a third name is an error. */
function activationOf({ folder, config }: Checkpoint): Activation {
  const activation = ACTIVATIONS.find((known) => known === (config.activation ?? 'silu'));
  if (!activation)
    throw new ConfigMismatchError(join(folder, CONFIG_FILE), 'activation', config.activation, ACTIVATIONS);
  return activation;
}
