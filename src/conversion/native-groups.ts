/** Finds the groups of a native MoBE checkpoint: the way back from its tensors to their plan. */
import { join } from 'node:path';
import { isFloatDtype } from '../checkpoint/dtype.js';
import type { TensorInfo } from '../checkpoint/header.js';
import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import {
  ConfigMismatchError,
  MissingExpertError,
  UnequalExpertError,
  UnknownModelError,
  UnsupportedDtypeError,
} from '../errors.js';
import { ACTIVATIONS, type Activation } from '../factorization/problem.js';
import type { FactorisedProjection } from '../models/family.js';
import { BASES_NAME, basesName, coefficientsName, expertName } from '../models/native.js';
import type { GroupPlan } from './groups.js';

/** The groups, their `experts` being the A tensors. Throws where there are none or a part of one is missing. */
export function findNativeGroups(checkpoint: Checkpoint): GroupPlan[] {
  const groups: GroupPlan[] = [];
  for (const bases of checkpoint.tensors.values()) {
    const match = BASES_NAME.exec(bases.name);
    if (match)
      groups.push(
        nativeGroup(
          checkpoint,
          bases,
          match[1] as string,
          Number(match[2]),
          `${match[3]}_proj` as FactorisedProjection,
        ),
      );
  }
  if (groups.length === 0) {
    throw new UnknownModelError(
      checkpoint.folder,
      'It has no tensors like model.layers.0.mlp.B_gate: it is not a native MoBE checkpoint.',
    );
  }
  return groups;
}

function nativeGroup(
  checkpoint: Checkpoint,
  bases: TensorInfo,
  prefix: string,
  layer: number,
  projection: FactorisedProjection,
): GroupPlan {
  const tensor = (name: string): TensorInfo => {
    const found = checkpoint.tensors.get(name);
    if (!found) throw new MissingExpertError(name, checkpoint.folder);
    return found;
  };
  const coefficients = tensor(coefficientsName(prefix, projection));
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
  const names = Array.from({ length: n }, (_, expert) => expertName({ prefix }, expert, projection));
  const experts = names.map(tensor);
  const [p] = (experts[0] as TensorInfo).shape as [number];
  for (const { name, file, shape, dtype } of experts) {
    if (String(shape) !== String([p, r]))
      throw new UnequalExpertError(name, file, `has shape [${shape}], expected [${p},${r}]`);
    if (dtype !== bases.dtype) throw new UnequalExpertError(name, file, `is ${dtype}, its bases are ${bases.dtype}`);
  }
  if (!isFloatDtype(bases.dtype)) throw new UnsupportedDtypeError(bases.name, bases.file, bases.dtype);
  return {
    layer,
    projection,
    group: 0,
    problem: { experts: n, rows: p, cols: d, bases: m, rank: r, activation: activationOf(checkpoint) },
    experts,
    sourceDtype: bases.dtype,
    dtype: bases.dtype,
    names: { bases: basesName(prefix, projection), coefficients: coefficients.name, experts: names },
  };
}

/** The reference's modelling files read anything but "tanh" as SiLU; here a third name is an error. */
function activationOf({ folder, config }: Checkpoint): Activation {
  const activation = ACTIVATIONS.find((known) => known === (config.activation ?? 'silu'));
  if (!activation)
    throw new ConfigMismatchError(join(folder, CONFIG_FILE), 'activation', config.activation, ACTIVATIONS);
  return activation;
}
