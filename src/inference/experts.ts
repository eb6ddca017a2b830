/** A model's routed experts as units of the weight cache. They are dense, or factors of a native MoBE checkpoint. */
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { matrixBytes, type StoredMatrix } from '../checkpoint/stored-matrix.js';
import { compareGroups, type GroupPlan } from '../conversion/group-plan.js';
import { storedFactorMatrix } from '../conversion/native-factors.js';
import { findNativeGroups, nativeMethod } from '../conversion/native-groups.js';
import { nativeLayers } from '../conversion/native-layers.js';
import { elements } from '../engine/ops.js';
import { MissingExpertError, WeightShapeError } from '../errors.js';
import { type StoredFactor, storedFactors } from '../methods/factor-storage.js';
import type { Problem } from '../methods/mobe/problem.js';
import type { Problem as SvdProblem } from '../methods/svd/problem.js';
import { expertsOf } from '../models/expert-names.js';
import { type ExpertLayer, PROJECTIONS, type Projection } from '../models/family.js';
import { SHORT_NAMES } from '../models/native.js';
import { gatedShapes, mixBases, type Ranks } from './feed-forward.js';
import type { Runner } from './runner.js';
import { findWeight, type Weight, type WeightReader } from './weight.js';
import { type Unit, unitBytes } from './weight-cache.js';

/** One layer's routed experts. Letters: n experts, p rows, d hidden size, m bases, r rank. */
export interface LayerExperts {
  readonly count: number;
  readonly rows: number;
  /** Rank of each projection that is stored as factors. */
  readonly ranks: Ranks;
  /** The expert's tensors. */
  units(expert: number): ExpertUnits;
  /** Announces experts that are needed next, in order. Their F may be made together, up to the memory for it. */
  expect(experts: readonly number[]): void;
  /** Bytes of all that the layer stores for its experts: their own weights, and what they share. */
  readonly storedBytes: { readonly own: number; readonly shared: number };
  /** The most bytes of decoded bases at once, while F is made. */
  readonly tileBytes: number;
}

/** The tensors of an expert. Together they have the names and shapes of `gatedShapes`. */
export interface ExpertUnits {
  /** Weights that are stored. */
  readonly own: Unit;
  /** Each F that is mixed from shared bases; undefined if there is none. */
  readonly mixed?: Unit | undefined;
}

/** Tools that read and compute a unit's content. */
export interface ExpertTools {
  readonly reader: WeightReader;
  readonly runner: Runner;
  /** Bytes for F that is made ahead. */
  readonly aheadBytes: () => number;
}

/** Memory that all layers use one after another. */
interface SharedTools extends ExpertTools {
  /** Memory for one tile of decoded bases. */
  readonly tile: (numbers: number) => Float32Array;
  /** Takes memory for an F that is made ahead. */
  readonly take: (numbers: number) => Float32Array;
  /** Gives it back. */
  readonly give: (memory: Float32Array) => void;
}

function withMemory(tools: ExpertTools): SharedTools {
  let tile = new Float32Array(0);
  let idle: Float32Array[] = [];
  return {
    ...tools,
    tile(numbers) {
      if (tile.length < numbers) tile = new Float32Array(numbers);
      return tile.subarray(0, numbers);
    },
    take(numbers) {
      // Memory of another size is that of layers of another shape, and would come on top.
      idle = idle.filter(({ length }) => length === numbers);
      return idle.pop() ?? new Float32Array(numbers);
    },
    give: (memory) => void idle.push(memory),
  };
}

/** Bytes of decoded bases at once: small enough for a processor's cache, large enough that calls of the engine cost little. */
const TILE_BYTES = 4 * 2 ** 20;

/**
 * The experts of all layers, by the part of their names before `experts.{e}`.
 * Throws a `MissingExpertError`, or a `WeightShapeError` if an expert's shape differs from the others'.
 */
export function findExperts(checkpoint: Checkpoint, width: number, given: ExpertTools): Map<string, LayerExperts> {
  const tools = withMemory(given);
  const groups = nativeMethod(checkpoint) ? findNativeGroups(checkpoint).sort(compareGroups) : [];
  const found = new Map<string, LayerExperts>();
  for (const { prefix, experts } of nativeLayers(checkpoint, groups)) {
    const factors = (projection: Projection): GroupPlan[] =>
      groups.filter((group) => group.prefix === prefix && group.projection === projection);
    found.set(prefix, layerExperts(checkpoint, prefix, experts, factors, width, tools));
  }
  const dense = new Map<string, Record<Projection, StoredMatrix[]>>();
  for (const tensor of checkpoint.tensors.values()) {
    if ([...found.keys()].some((prefix) => tensor.name.startsWith(prefix))) continue;
    for (const { prefix, expert, projection, matrix } of expertsOf(tensor, checkpoint)) {
      const layer = dense.get(prefix) ?? { gate_proj: [], up_proj: [], down_proj: [] };
      dense.set(prefix, layer);
      layer[projection][expert] = matrix;
    }
  }
  for (const [prefix, experts] of dense)
    found.set(
      prefix,
      layerExperts(checkpoint, prefix, experts, () => [], width, tools),
    );
  return found;
}

/** One projection of a layer. */
interface Part {
  readonly name: 'gate' | 'up' | 'down';
  readonly matrices: readonly StoredMatrix[];
  /** Groups of a factorised projection, in the order of their experts; empty if it is dense. */
  readonly groups: readonly FactorGroup[];
}

/** The part of a group's experts by which A is multiplied: W = A·F. */
interface FactorGroup {
  readonly rank: number;
  /** The matrix of the F that an expert has to itself; undefined if F is mixed. */
  own?(expert: number): StoredMatrix;
  /** Set if F is mixed from bases that the experts share. */
  readonly mixed?: Mixed;
}

interface Mixed {
  /** Bytes of bases and coefficients. */
  readonly storedBytes: number;
  /** The most bytes of decoded bases at once. */
  readonly tileBytes: number;
  /** Writes the F (r, d) of each of these experts. */
  fill(targets: ReadonlyArray<{ readonly F: Float32Array; readonly expert: number }>): Promise<void>;
}

function layerExperts(
  checkpoint: Checkpoint,
  prefix: string,
  matrices: ExpertLayer['experts'],
  factors: (projection: Projection) => GroupPlan[],
  width: number,
  tools: SharedTools,
): LayerExperts {
  const { reader } = tools;
  const count = Math.max(...PROJECTIONS.map((projection) => matrices[projection].length));
  const parts = PROJECTIONS.map(
    (projection): Part => ({
      name: SHORT_NAMES[projection],
      matrices: matrices[projection],
      groups: factors(projection).map((plan) => factorGroup(checkpoint, plan, tools)),
    }),
  );
  const rows = matrices.down_proj[0]?.cols ?? 0;
  const ranks = Object.fromEntries(parts.flatMap(({ name, groups: [first] }) => (first ? [[name, first.rank]] : [])));
  const shapes = gatedShapes({ width, rows }, ranks);
  const whole = gatedShapes({ width, rows });
  for (const { name, matrices: own } of parts) {
    const shape = whole[name] as number[];
    for (let expert = 0; expert < count; expert++) {
      const matrix = own[expert];
      if (!matrix) throw new MissingExpertError(`${prefix}experts.${expert}.${name}_proj.weight`, checkpoint.folder);
      if (matrix.rows !== shape[0] || matrix.cols !== shape[1])
        throw new WeightShapeError(matrix.name, matrix.data.file, [matrix.rows, matrix.cols], shape);
    }
  }

  /** The factors of the expert's group, and the expert's number in it; undefined if the projection is dense. */
  const groupOf = ({ groups }: Part, expert: number): [FactorGroup, number] | undefined => {
    const size = count / groups.length;
    const group = groups[Math.floor(expert / size)];
    return group && [group, expert % size];
  };
  /** The stored matrices of an expert, by the names of `gatedShapes`. */
  const storedOf = (part: Part, expert: number): Array<[string, StoredMatrix]> => {
    const matrix = part.matrices[expert] as StoredMatrix;
    const found = groupOf(part, expert);
    if (!found) return [[part.name, matrix]];
    const [group, place] = found;
    const [p, rank] = shapes[`${part.name}A`] as [number, number];
    const A: [string, StoredMatrix] = [`${part.name}A`, { ...matrix, rows: p, cols: rank }];
    return group.own ? [A, [`${part.name}F`, group.own(place)]] : [A];
  };
  const isMixed = ([name]: [string, number[]]): boolean =>
    parts.some((part) => name === `${part.name}F` && part.groups[0]?.mixed !== undefined);
  const mixedParts = parts.filter(({ groups: [first] }) => first?.mixed !== undefined);
  const [mixedShapes, ownShapes] = [true, false].map((mixed) =>
    Object.fromEntries(Object.entries(shapes).filter((it) => isMixed(it) === mixed)),
  ) as [Record<string, number[]>, Record<string, number[]>];
  const mixedBytes = unitBytes({ shapes: mixedShapes });
  let expected: readonly number[] = [];
  const ahead = new Map<number, Readonly<Record<string, Float32Array>>>();
  const drop = (experts: Iterable<number>): void => {
    for (const expert of [...experts]) {
      for (const F of Object.values(ahead.get(expert) ?? {})) tools.give(F);
      ahead.delete(expert);
    }
  };
  /** Makes the F of an expert in `buffers`, and that of the experts expected after it, as far as there is memory for it. */
  const mix = async (
    expert: number,
    buffers: Readonly<Record<string, Float32Array>>,
  ): Promise<Readonly<Record<string, Float32Array>>> => {
    drop(ahead.keys());
    const next = expected.indexOf(expert) + 1;
    const others = expected.slice(next, next + Math.floor(tools.aheadBytes() / mixedBytes));
    for (const other of others)
      ahead.set(
        other,
        Object.fromEntries(Object.entries(mixedShapes).map(([name, shape]) => [name, tools.take(elements(shape))])),
      );
    for (const part of mixedParts) {
      const wanted = [[expert, buffers] as const, ...ahead].map(([number, named]) => {
        const [group, place] = groupOf(part, number) as [FactorGroup, number];
        return { group, place, F: named[`${part.name}F`] as Float32Array };
      });
      for (const group of part.groups)
        await group.mixed?.fill(
          wanted.filter((it) => it.group === group).map(({ F, place }) => ({ F, expert: place })),
        );
    }
    return buffers;
  };
  const own = parts.flatMap((part) =>
    Array.from({ length: count }, (_, expert) =>
      storedOf(part, expert).map(([, matrix]) => matrixBytes(matrix)),
    ).flat(),
  );
  const shared = parts.flatMap(({ groups }) => groups.flatMap(({ mixed }) => mixed ?? []));
  return {
    count,
    rows,
    ranks,
    storedBytes: { own: sumOf(own), shared: sumOf(shared.map(({ storedBytes }) => storedBytes)) },
    tileBytes: Math.max(0, ...shared.map(({ tileBytes }) => tileBytes)),
    expect(experts) {
      expected = mixedParts.length > 0 ? experts : [];
      drop(ahead.keys());
    },
    units: (expert) => ({
      own: {
        key: `${prefix}experts.${expert}`,
        shapes: ownShapes,
        kind: 'expert',
        async fill(buffers, kept) {
          for (const [name, matrix] of parts.flatMap((part) => storedOf(part, expert)))
            await reader.fill(buffers[name] as Float32Array, matrix, undefined, kept ? undefined : 'own');
        },
      },
      ...(mixedParts.length > 0 && {
        mixed: {
          key: `${prefix}experts.${expert} F`,
          shapes: mixedShapes,
          kind: 'mixed',
          async fill(buffers) {
            const ready = ahead.get(expert) ?? (await mix(expert, buffers));
            for (const [name, F] of Object.entries(ready)) if (F !== buffers[name]) buffers[name]?.set(F);
            drop([expert]);
          },
        },
      }),
    }),
  };
}

const sumOf = (numbers: readonly number[]): number => numbers.reduce((sum, it) => sum + it, 0);

function factorGroup(checkpoint: Checkpoint, plan: GroupPlan, tools: SharedTools): FactorGroup {
  return plan.names.shared.B === undefined ? ownFactors(checkpoint, plan) : mixedFactors(checkpoint, plan, tools);
}

/**
 * F = f(ΣαB), mixed from the bases that the group's experts share. It is made a few rows at a time, because decoded bases are as
 * large as the F of m experts.
 */
function mixedFactors(checkpoint: Checkpoint, plan: GroupPlan, { reader, runner, tile }: SharedTools): FactorGroup {
  const { bases: m, rank: r, cols: d, experts: n, activation } = plan.problem as Problem;
  const { B: name, alpha } = plan.names.shared as { B: string; alpha: string };
  const [stored] = storedFactors(plan).shared.filter((factor) => factor.name === 'B') as [StoredFactor];
  const bases = storedFactorMatrix(checkpoint, name, stored);
  const { matrix: coefficients } = findWeight(checkpoint, alpha, [n, m]);
  const most = Math.min(r, Math.max(1, Math.floor(TILE_BYTES / (4 * m * d))));
  return {
    rank: r,
    mixed: {
      storedBytes: matrixBytes(bases) + matrixBytes(coefficients),
      tileBytes: 4 * most * m * d,
      async fill(targets) {
        const made: Array<{ F: Float32Array; alpha: Float32Array }> = [];
        for (const { F, expert } of targets) {
          const alpha = new Float32Array(m);
          await reader.fill(alpha, coefficients, { first: expert, count: 1 }, 'shared');
          made.push({ F, alpha });
        }
        for (let first = 0; first < r; first += most) {
          const count = Math.min(most, r - first);
          const size = count * d;
          const B = tile(m * size);
          for (let k = 0; k < m; k++)
            await reader.fill(B.subarray(k * size, (k + 1) * size), bases, { first: k * r + first, count }, 'shared');
          const sizes = { bases: m, size, activation };
          for (const { F, alpha } of made)
            await runner.runInto(mixBases, sizes, { B, alpha }, { F: F.subarray(first * d, first * d + size) });
        }
      },
    },
  };
}

/** F = V, which each expert has to itself. */
function ownFactors(checkpoint: Checkpoint, { problem, names }: GroupPlan): FactorGroup {
  const { rank, cols } = problem as SvdProblem;
  const weights = names.experts.map(({ V }) => findWeight(checkpoint, V as string, [rank, cols]));
  return { rank, own: (expert) => (weights[expert] as Weight).matrix };
}
