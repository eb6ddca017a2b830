/** The layers of a native checkpoint: their experts, with the places that these had in the checkpoint's source. */
import { join } from 'node:path';
import { floatBytes, isFloatDtype } from '../checkpoint/dtype.js';
import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import { dataOf, isQuantised, quantisedMatrix } from '../checkpoint/quantisation.js';
import type { MatrixPlace, StoredMatrix } from '../checkpoint/stored-matrix.js';
import { MissingExpertError, NotACheckpointError, UnequalExpertError } from '../errors.js';
import { divisionOf, type ExpertLayout, expertLayout, placeIn, shapeIn } from '../models/expert-layout.js';
import { type Config, type ExpertLayer, PROJECTIONS, type Projection } from '../models/family.js';
import { viewOfPart } from '../models/matrix-part.js';
import type { ByteRange } from '../sources/files.js';
import { compareGroups, type GroupPlan } from './group-plan.js';
import { turnedSize } from './orientation.js';
import { slicesOf } from './slices.js';

type Size = Pick<StoredMatrix, 'rows' | 'cols'>;

/** A layer with factorised experts. */
export interface NativeLayer extends ExpertLayer {
  /** The layout of the source. */
  readonly layout: ExpertLayout;
  /** The factorised projections. The data of their matrices is the factor that includes σ. */
  readonly factorised: ReadonlySet<Projection>;
}

/** Checkpoints of format_version 1 do not say their source's layout. They are expanded to one tensor for each matrix. */
const SEPARATE: ExpertLayout = PROJECTIONS.map((projection) => ({
  name: `experts.{e}.${projection}.weight`,
  projections: [projection],
  interleaved: false,
  transposed: false,
  flat: false,
}));

/**
 * Finds the experts of all layers with groups. Throws a `MissingExpertError` or `UnequalExpertError` if a dense expert is missing
 * or has another shape, and a `NotACheckpointError` if the config describes no layout.
 */
export function nativeLayers(checkpoint: Checkpoint, groups: readonly GroupPlan[]): NativeLayer[] {
  const layout = layoutIn(checkpoint);
  const layers = new Map<string, GroupPlan[]>();
  for (const group of [...groups].sort(compareGroups)) {
    const known = layers.get(group.prefix);
    if (known) known.push(group);
    else layers.set(group.prefix, [group]);
  }
  return [...layers].map(([prefix, own]) => {
    const [{ layer, problem, groups: parts }] = own as [GroupPlan];
    const dense = { checkpoint, prefix, layout, count: problem.experts * parts };
    const matrices = (projection: Projection): StoredMatrix[] => {
      const size = turnedSize(projection, problem);
      const factors = own.filter((it) => it.projection === projection).flatMap(({ experts }) => experts);
      if (factors.length === 0) return denseExperts(dense, projection, size);
      return factors.map((matrix, e) => ({
        ...matrix,
        place: placeIn(layout, prefix, projection, e, size) ?? matrix.place,
      }));
    };
    return {
      layer,
      prefix,
      layout,
      factorised: new Set(own.map(({ projection }) => projection)),
      experts: { gate_proj: matrices('gate_proj'), up_proj: matrices('up_proj'), down_proj: matrices('down_proj') },
    };
  });
}

/** The groups with the places of their weights in the source's layout. */
export function placedGroups(groups: readonly GroupPlan[], layers: readonly NativeLayer[]): GroupPlan[] {
  const byPrefix = new Map(layers.map((layer) => [layer.prefix, layer] as const));
  return groups.map((group) => {
    const { experts } = byPrefix.get(group.prefix) as NativeLayer;
    const size = group.experts.length;
    const range = [group.group * size, (group.group + 1) * size] as const;
    return {
      ...group,
      experts: experts[group.projection].slice(...range),
      slices: slicesOf(experts, group.projection)?.slice(...range),
    };
  });
}

function layoutIn({ config, folder }: Checkpoint): ExpertLayout {
  const described = (config.mobe as Config | undefined)?.experts;
  if (described === undefined) return SEPARATE;
  const { success, data } = expertLayout.safeParse(described);
  if (!success)
    throw new NotACheckpointError(join(folder, CONFIG_FILE), 'its "mobe.experts" describes no layout of experts');
  return data;
}

interface DenseLayer {
  readonly checkpoint: Checkpoint;
  readonly prefix: string;
  readonly layout: ExpertLayout;
  readonly count: number;
}

/** The matrices of a projection that is not factorised; none if the experts do not have it. */
function denseExperts(
  { checkpoint, prefix, layout, count }: DenseLayer,
  projection: Projection,
  size: Size,
): StoredMatrix[] {
  const { tensors, folder } = checkpoint;
  const held = layout.find(({ projections }) => projections.includes(projection));
  if (!held) return [];
  const quantised = (name: string, place: MatrixPlace): StoredMatrix | undefined => {
    const data = dataOf(name, checkpoint);
    if (!data || !isQuantised(data)) return undefined;
    const matrix = quantisedMatrix(data, checkpoint);
    if (matrix.rows === size.rows && matrix.cols === size.cols) return { ...matrix, place };
    const found = `holds [${matrix.rows},${matrix.cols}], and should hold [${size.rows},${size.cols}]`;
    throw new UnequalExpertError(data.name, data.file, found);
  };
  return Array.from({ length: count }, (_, expert): StoredMatrix => {
    const place = placeIn(layout, prefix, projection, expert, size) as MatrixPlace;
    // If the source's tensor holds a factorised projection, too, the dense one has a tensor for each expert.
    const name = `${prefix}experts.${expert}.${projection}.weight`;
    // `--keep-quantized` leaves tensors of one matrix as they are.
    const coded = held.name.includes('{e}') ? quantised(place.tensor, place) : undefined;
    if (coded) return coded;
    const inPlace = tensors.get(place.tensor);
    const tensor = inPlace ?? tensors.get(name);
    if (!tensor) throw new MissingExpertError(name, folder);
    const { file, shape, dtype } = tensor;
    const whole = held.projections.length * size.rows * size.cols;
    const stacked = inPlace && !held.name.includes('{e}') ? count : 1;
    const elements = inPlace ? stacked * whole : size.rows * size.cols;
    if (!isFloatDtype(dtype) || shape.reduce((a, b) => a * b, 1) !== elements)
      throw new UnequalExpertError(
        tensor.name,
        file,
        `is ${dtype} [${shape}], and should hold experts of [${size.rows},${size.cols}]`,
      );
    const stored = (element: number, length: number): ByteRange => {
      const start = tensor.start + element * floatBytes(dtype);
      return { file, start, end: start + length * floatBytes(dtype) };
    };
    const plain = { kind: 'float', dtype } as const;
    if (!inPlace) return { name, ...size, encoding: plain, data: stored(0, elements), place };
    if (!place.steps)
      return { name, ...size, encoding: plain, data: stored(place.element, size.rows * size.cols), place };
    const own = stacked === 1 ? 0 : expert * whole;
    const part = held.projections.indexOf(projection);
    const encoding = viewOfPart(plain, divisionOf(held), part, size);
    return { name, ...size, encoding, data: stored(own, whole), place };
  });
}

/** A tensor of the source's layout that is made of several tensors of a native checkpoint. */
export interface RestoredTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** Expert by expert. */
  readonly matrices: readonly StoredMatrix[];
}

/** The tensors with factorised projections in the source's layout, by the name of each native tensor that goes there. */
export function restoredTensors(layers: readonly NativeLayer[]): Map<string, RestoredTensor> {
  const restored = new Map<string, RestoredTensor>();
  for (const { prefix, layout, experts, factorised } of layers) {
    for (const tensor of layout) {
      const { name, projections } = tensor;
      if (!projections.some((it) => factorised.has(it))) continue;
      const held = experts[projections[0] as Projection];
      const { length } = held;
      const shape = shapeIn(tensor, length, held[0] as StoredMatrix);
      const ofExpert = (e: number): StoredMatrix[] => projections.map((it) => experts[it][e] as StoredMatrix);
      const all = Array.from({ length }, (_, e) => ofExpert(e));
      const targets: RestoredTensor[] = name.includes('{e}')
        ? all.map((matrices, e) => ({ name: prefix + name.replace('{e}', String(e)), shape, matrices }))
        : [{ name: prefix + name, shape, matrices: all.flat() }];
      for (const target of targets) for (const it of target.matrices) restored.set(it.name, target);
    }
  }
  return restored;
}
