/** A model's routed experts as units of the weight cache. They are dense, or factors of a native MoBE checkpoint. */
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { compareGroups, type GroupPlan } from '../conversion/group-plan.js';
import { storedFactorMatrix } from '../conversion/native-factors.js';
import { findNativeGroups, nativeMethod } from '../conversion/native-groups.js';
import { nativeLayers } from '../conversion/native-layers.js';
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
import type { Unit, WeightCache } from './weight-cache.js';

/** One layer's routed experts. Letters: n experts, p rows, d hidden size, m bases, r rank. */
export interface LayerExperts {
  readonly count: number;
  readonly rows: number;
  /** Rank of each projection that is stored as factors. */
  readonly ranks: Ranks;
  /** The expert's tensors. Names and shapes: `gatedShapes`. */
  unit(expert: number): Unit;
  /** Units of the bases that experts are mixed from; empty if experts are dense. */
  readonly bases: readonly Unit[];
}

/** Tools that read and compute a unit's content. */
export interface ExpertTools {
  readonly reader: WeightReader;
  readonly runner: Runner;
  readonly cache: () => WeightCache;
}

/**
 * The experts of all layers, by the part of their names before `experts.{e}`.
 * Throws a `MissingExpertError`, or a `WeightShapeError` if an expert's shape differs from the others'.
 */
export function findExperts(checkpoint: Checkpoint, width: number, tools: ExpertTools): Map<string, LayerExperts> {
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
  /** The shared bases from which F is mixed. Undefined if each expert stores its own F. */
  readonly bases?: Unit;
  /** Writes the F (r, d) of the group's expert. */
  fill(target: Float32Array, expert: number): Promise<void>;
}

function layerExperts(
  checkpoint: Checkpoint,
  prefix: string,
  matrices: ExpertLayer['experts'],
  factors: (projection: Projection) => GroupPlan[],
  width: number,
  tools: ExpertTools,
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

  const fillPart = async (part: Part, expert: number, buffers: Readonly<Record<string, Float32Array>>) => {
    const { name, groups } = part;
    const matrix = part.matrices[expert] as StoredMatrix;
    if (groups.length === 0) return reader.fill(buffers[name] as Float32Array, matrix);
    const [p, rank] = shapes[`${name}A`] as [number, number];
    await reader.fill(buffers[`${name}A`] as Float32Array, { ...matrix, rows: p, cols: rank });
    const size = count / groups.length;
    await (groups[Math.floor(expert / size)] as FactorGroup).fill(buffers[`${name}F`] as Float32Array, expert % size);
  };
  return {
    count,
    rows,
    ranks,
    bases: parts.flatMap(({ groups }) => groups.flatMap(({ bases }) => bases ?? [])),
    unit: (expert) => ({
      key: `${prefix}experts.${expert}`,
      shapes,
      needed: 'routed',
      async fill(buffers) {
        for (const part of parts) await fillPart(part, expert, buffers);
      },
    }),
  };
}

function factorGroup(checkpoint: Checkpoint, plan: GroupPlan, tools: ExpertTools): FactorGroup {
  return plan.names.shared.B === undefined
    ? ownFactors(checkpoint, plan, tools)
    : mixedFactors(checkpoint, plan, tools);
}

/** F = f(ΣαB), mixed from the bases that the group's experts share. */
function mixedFactors(checkpoint: Checkpoint, plan: GroupPlan, { reader, runner, cache }: ExpertTools): FactorGroup {
  const { bases: m, rank: r, cols: d, experts: n, activation } = plan.problem as Problem;
  const { B: name, alpha } = plan.names.shared as { B: string; alpha: string };
  const [B] = storedFactors(plan).shared.filter((factor) => factor.name === 'B') as [StoredFactor];
  const stacked = storedFactorMatrix(checkpoint, name, B);
  const coefficients = findWeight(checkpoint, alpha, [n, m]);
  const bases: Unit = {
    key: name,
    shapes: { B: [m, r * d] },
    // Bases are needed only when an expert is rebuilt, so they may be evicted.
    needed: 'routed',
    fill: ({ B }) => reader.fill(B as Float32Array, stacked),
  };
  return {
    rank: r,
    bases,
    async fill(target, expert) {
      const own = new Float32Array(m);
      await reader.fill(own, coefficients.matrix, { first: expert, count: 1 });
      const { F } = await cache().with(bases, ({ B }) =>
        runner.run(mixBases, { bases: m, size: r * d, activation }, { B: B as NonNullable<typeof B>, alpha: own }, [
          'F',
        ]),
      );
      target.set(F);
    },
  };
}

/** F = V, which each expert has to itself. */
function ownFactors(checkpoint: Checkpoint, { problem, names }: GroupPlan, { reader }: ExpertTools): FactorGroup {
  const { rank, cols } = problem as SvdProblem;
  const weights = names.experts.map(({ V }) => findWeight(checkpoint, V as string, [rank, cols]));
  return { rank, fill: (target, expert) => reader.fill(target, (weights[expert] as Weight).matrix) };
}
