/** Which experts are factorised together, and how large their factors are. */
import { type FloatDtype, floatBytes, isFloatDtype } from '../checkpoint/dtype.js';
import { floatTensor, type TensorInfo, type TensorSpec } from '../checkpoint/header.js';
import { NotSmallerError, OptionError, UnsupportedDtypeError } from '../errors.js';
import { denseParameters, factorParameters, type Problem } from '../factorization/problem.js';
import { type ExpertLayer, type FactorisedProjection, type MoeModel, PROJECTIONS } from '../models/family.js';
import { basesName, coefficientsName } from '../models/native.js';
import { DTYPE_NAMES, type Format, type Settings } from './settings.js';

/** The experts of one layer and projection. */
export interface GroupPlan {
  readonly layer: number;
  readonly projection: FactorisedProjection;
  /** Which part of the layer's experts, where they are split; all of them: 0. */
  readonly group: number;
  readonly problem: Problem;
  /** The dense weights, in expert order, as stored. */
  readonly experts: readonly TensorInfo[];
  /** Of the dense weights. */
  readonly sourceDtype: FloatDtype;
  /** Of what is written. */
  readonly dtype: FloatDtype;
  readonly names: GroupNames;
}

/** The tensors a group is written as; an expert's A has the name its dense weights had. */
export interface GroupNames {
  readonly bases: string;
  readonly coefficients: string;
  readonly experts: readonly string[];
}

export const groupLabel = ({ layer, projection }: Pick<GroupPlan, 'layer' | 'projection'>): string =>
  `layer ${layer} ${projection}`;

/** Bytes of a group's dense weights, as stored. */
export const sourceBytes = ({ problem, sourceDtype }: GroupPlan): number =>
  denseParameters(problem) * floatBytes(sourceDtype);

/** The layers to convert. Throws `OptionError` for one that has no experts. */
export function selectLayers({ layers }: MoeModel, wanted: readonly number[] | undefined): ExpertLayer[] {
  if (!wanted) return [...layers];
  const known = new Set(layers.map(({ layer }) => layer));
  const unknown = wanted.filter((layer) => !known.has(layer));
  if (unknown.length) {
    throw new OptionError(
      '--layers',
      `layer ${unknown.join(', ')} has no routed experts; those that have: ${formatRanges([...known])}`,
    );
  }
  return layers.filter(({ layer }) => wanted.includes(layer));
}

/** Groups in the order in which their experts lie in the shards, so that each is complete early. */
export function planGroups(model: MoeModel, settings: Settings): GroupPlan[] {
  const layers = selectLayers(model, settings.layers);
  if (settings.format === 'mobe' && !model.family.nativeArchitecture) {
    throw new OptionError('--format', `no native form is defined for ${model.family.name}. Use --format hf.`);
  }
  const bases = settings.bases ?? basesToKeep(layers, settings);
  const groups = layers.flatMap((layer) =>
    settings.projections.map((projection) => planGroup(layer, projection, bases, settings)),
  );
  for (const { problem } of groups) checkSmaller(problem);
  const firstByte = ({ experts: [first] }: GroupPlan): string =>
    `${first?.file}:${String(first?.start).padStart(16, '0')}`;
  return groups.sort((a, b) => (firstByte(a) < firstByte(b) ? -1 : 1));
}

function planGroup(layer: ExpertLayer, projection: FactorisedProjection, bases: number, settings: Settings): GroupPlan {
  const experts = layer.experts[projection];
  const first = experts[0] as TensorInfo;
  const [rows, cols] = first.shape as [number, number];
  if (!isFloatDtype(first.dtype)) throw new UnsupportedDtypeError(first.name, first.file, first.dtype);
  const rank = settings.rank ?? Math.min(rows, cols);
  if (rank > Math.min(rows, cols)) {
    throw new OptionError(
      '--rank',
      `${rank} is more than an expert has: ${first.name} is ${rows}×${cols}, so at most ${Math.min(rows, cols)}`,
    );
  }
  return {
    layer: layer.layer,
    projection,
    group: 0,
    problem: { experts: experts.length, rows, cols, bases, rank, activation: settings.activation },
    experts,
    sourceDtype: first.dtype,
    dtype: settings.dtype ? DTYPE_NAMES[settings.dtype] : first.dtype,
    names: {
      bases: basesName(layer.prefix, projection),
      coefficients: coefficientsName(layer.prefix, projection),
      experts: experts.map(({ name }) => name),
    },
  };
}

/** The largest m with which at most `keep` of the layers' routed-expert parameters remain. */
function basesToKeep(layers: readonly ExpertLayer[], { keep = 1, projections, rank: wanted }: Settings): number {
  let total = 0;
  let fixed = 0; // what remains whatever m is
  let perBasis = 0;
  for (const { experts } of layers) {
    for (const projection of PROJECTIONS) {
      const { length: n } = experts[projection];
      const [p, d] = (experts[projection][0] as TensorInfo).shape as [number, number];
      const r = wanted ?? Math.min(p, d);
      total += n * p * d;
      const factorised = projections.some((it) => it === projection);
      fixed += factorised ? n * p * r : n * p * d;
      if (factorised) perBasis += r * d + n;
    }
  }
  const bases = Math.floor((keep * total - fixed) / perBasis);
  if (layers.length && bases < 1) {
    const least = Math.ceil((1000 * (fixed + perBasis)) / total) / 1000;
    throw new OptionError(
      '--keep',
      `even one basis keeps more than ${keep} of the experts' parameters; the least possible is ${least}. Lower --rank to go below.`,
    );
  }
  return bases;
}

function checkSmaller(problem: Problem): void {
  const before = denseParameters(problem);
  const after = factorParameters(problem);
  if (after < before) return;
  const { experts: n, rows: p, cols: d, rank: r } = problem;
  const most = Math.ceil((n * p * (d - r)) / (r * d + n)) - 1;
  const remedy = most >= 1 ? `Use at most --bases ${most} at rank ${r}.` : `Lower --rank (${r}).`;
  throw new NotSmallerError(before, after, remedy);
}

/** The tensors a group is written as, in the given format. */
export function groupTensors({ problem, dtype, names, experts }: GroupPlan, format: Format): TensorSpec[] {
  const { rows: p, cols: d, bases: m, rank: r, experts: n } = problem;
  if (format === 'hf') return experts.map(({ name }) => floatTensor(name, dtype, p, d));
  return [
    floatTensor(names.bases, dtype, m, r, d),
    floatTensor(names.coefficients, dtype, n, m),
    ...names.experts.map((name) => floatTensor(name, dtype, p, r)),
  ];
}

/** [0,1,2,5] → "0-2, 5" */
export function formatRanges(numbers: readonly number[]): string {
  const ranges: Array<[number, number]> = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last && number <= last[1] + 1) last[1] = number;
    else ranges.push([number, number]);
  }
  return ranges.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(', ');
}
