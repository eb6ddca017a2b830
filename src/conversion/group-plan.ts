/** Which experts are factorised together, and how large their factors are. */
import type { FloatDtype } from '../checkpoint/dtype.js';
import { floatTensor, type TensorSpec } from '../checkpoint/header.js';
import { type MatrixFormat, matrixBytes, type StoredMatrix } from '../checkpoint/stored-matrix.js';
import { NotSmallerError, OptionError } from '../errors.js';
import { denseParameters, factorParameters, type Problem } from '../methods/mobe/problem.js';
import { type ExpertLayer, type MoeModel, PROJECTIONS, type Projection } from '../models/family.js';
import { basesName, coefficientsName, expertName, type GroupNumber } from '../models/native.js';
import { decodedDtype, type Settings } from './settings.js';

/** The experts of one layer and projection, or one of the parts they are cut into. */
export interface GroupPlan extends GroupNumber {
  readonly layer: number;
  readonly projection: Projection;
  /** rows × cols are those of the matrices that are factorised: of the transpose, where `format` says so. */
  readonly problem: Problem;
  /** The dense weights, in expert order. */
  readonly experts: readonly StoredMatrix[];
  /** Of every one of them. */
  readonly format: MatrixFormat;
  /** Of what is written. */
  readonly dtype: FloatDtype;
  /** Under which a native checkpoint has it. */
  readonly names: GroupNames;
}

/** The tensors a group is written as; an expert's A has the name its dense weights had. */
export interface GroupNames {
  readonly bases: string;
  readonly coefficients: string;
  readonly experts: readonly string[];
}

/** What identifies a group within a model. */
export type GroupKey = Pick<GroupPlan, 'layer' | 'projection' | 'group' | 'groups'>;

export const groupLabel = ({ layer, projection, group, groups }: GroupKey): string =>
  `layer ${layer} ${projection}${groups === 1 ? '' : ` group ${group}`}`;

/** In the order of layers, projections, and parts. */
export const compareGroups = (a: Omit<GroupKey, 'groups'>, b: Omit<GroupKey, 'groups'>): number =>
  a.layer - b.layer || PROJECTIONS.indexOf(a.projection) - PROJECTIONS.indexOf(b.projection) || a.group - b.group;

/** Bytes of a group's dense weights, as stored. */
export const sourceBytes = ({ experts, format }: Pick<GroupPlan, 'experts' | 'format'>): number =>
  experts.length * matrixBytes(format);

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
  if (settings.format === 'mobe' && !model.family.native) {
    throw new OptionError('--format', `no native form is defined for ${model.family.name}. Use --format hf.`);
  }
  if (settings.format === 'mobe' && settings.keepQuantized) {
    throw new OptionError(
      '--keep-quantized',
      'the modelling files of native checkpoints hold plain weights. Use --format hf, or leave it out.',
    );
  }
  if (settings.format === 'mobe' && settings.maxError !== undefined) {
    throw new OptionError(
      '--max-error',
      'the header of a native checkpoint says which layers are compressed, and is written before the errors are known. Use --format hf; or "mobe fit" and then "mobe export --max-error", which leaves out the layers that fit worse.',
    );
  }
  const bases = settings.bases ?? basesToKeep(layers, settings);
  const groups = layers.flatMap((layer) =>
    settings.projections.flatMap((projection) => planProjection(layer, projection, bases, settings)),
  );
  groups.forEach(checkSmaller);
  const firstByte = ({ experts: [first] }: GroupPlan): string =>
    `${first?.data.file}:${String(first?.data.start).padStart(16, '0')}`;
  const order = new Map(groups.map((group) => [group, firstByte(group)] as const));
  return groups.sort((a, b) => ((order.get(a) as string) < (order.get(b) as string) ? -1 : 1));
}

/**
 * The groups of one layer and projection: its experts cut in order, each part with its share of the bases (the reference's
 * `train_group.py`). `down_proj` is (d, p), taller than wide, so its transpose is factorised: its A is then as small as the others'.
 */
function planProjection(layer: ExpertLayer, projection: Projection, bases: number, settings: Settings): GroupPlan[] {
  const all = layer.experts[projection];
  const { name, rows: storedRows, cols: storedCols, encoding } = all[0] as StoredMatrix;
  const { groups, activation } = settings;
  const transposed = projection === 'down_proj';
  const [rows, cols] = transposed ? [storedCols, storedRows] : [storedRows, storedCols];
  const rank = settings.rank ?? Math.min(rows, cols);
  if (rank > Math.min(rows, cols)) {
    throw new OptionError(
      '--rank',
      `${rank} is more than an expert has: ${name} is ${storedRows}×${storedCols}, so at most ${Math.min(rows, cols)}`,
    );
  }
  checkDivisible('experts of a layer', all.length, groups);
  checkDivisible('bases', bases, groups);
  const size = all.length / groups;
  return Array.from({ length: groups }, (_, group) => {
    const first = group * size;
    const number = { group, groups };
    return {
      layer: layer.layer,
      projection,
      ...number,
      problem: { experts: size, rows, cols, bases: bases / groups, rank, activation },
      experts: all.slice(first, first + size),
      format: { rows: storedRows, cols: storedCols, encoding, transposed },
      dtype: encoding.kind === 'float' && !settings.dtype ? encoding.dtype : decodedDtype(settings),
      names: {
        bases: basesName(layer.prefix, projection, number),
        coefficients: coefficientsName(layer.prefix, projection, number),
        experts: Array.from({ length: size }, (_, i) => expertName(layer, first + i, projection)),
      },
    };
  });
}

function checkDivisible(what: string, count: number, groups: number): void {
  if (count % groups !== 0)
    throw new OptionError('--groups', `the ${count} ${what} cannot be cut into ${groups} equal parts`);
}

/** The largest m with which at most `keep` of the layers' routed-expert parameters remain. */
function basesToKeep(
  layers: readonly ExpertLayer[],
  { keep = 1, projections, rank: wanted, groups }: Settings,
): number {
  let total = 0;
  let fixed = 0; // what remains whatever m is
  let perBasis = 0;
  for (const { experts } of layers) {
    for (const projection of PROJECTIONS) {
      const { length: n } = experts[projection];
      const { rows, cols } = experts[projection][0] as StoredMatrix;
      const [p, d] = projection === 'down_proj' ? [cols, rows] : [rows, cols];
      const r = wanted ?? Math.min(p, d);
      total += n * p * d;
      const factorised = projections.some((it) => it === projection);
      fixed += factorised ? n * p * r : n * p * d;
      if (factorised) perBasis += r * d + n / groups;
    }
  }
  const bases = groups * Math.floor((keep * total - fixed) / perBasis / groups);
  if (layers.length && bases < 1) {
    const least = Math.ceil((1000 * (fixed + groups * perBasis)) / total) / 1000;
    throw new OptionError(
      '--keep',
      `even ${groups === 1 ? 'one basis' : 'one basis a group'} keeps more than ${keep} of the experts' parameters; the least possible is ${least}. Lower --rank to go below.`,
    );
  }
  return bases;
}

function checkSmaller({ problem, groups }: GroupPlan): void {
  const before = denseParameters(problem);
  const after = factorParameters(problem);
  if (after < before) return;
  const { experts: n, rows: p, cols: d, rank: r } = problem;
  const most = Math.ceil((n * p * (d - r)) / (r * d + n)) - 1;
  const remedy = most >= 1 ? `Use at most --bases ${most * groups} at rank ${r}.` : `Lower --rank (${r}).`;
  throw new NotSmallerError(before, after, remedy);
}

/** The tensors a group is stored as in a native checkpoint: B, α, and each expert's A. */
export function nativeTensors({ problem, dtype, names }: GroupPlan): TensorSpec[] {
  const { rows: p, cols: d, bases: m, rank: r, experts: n } = problem;
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
