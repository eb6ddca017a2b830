/** A model's routed experts as units of the weight cache. They are dense, or factors of a native MoBE checkpoint. */
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import type { GroupPlan } from '../conversion/group-plan.js';
import { findNativeGroups, nativeMethod } from '../conversion/native-groups.js';
import { MissingExpertError, WeightShapeError } from '../errors.js';
import type { Problem } from '../methods/mobe/problem.js';
import { expertsOf } from '../models/expert-names.js';
import { PROJECTIONS, type Projection } from '../models/family.js';
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
  const groups = new Map<string, GroupPlan>();
  for (const group of nativeMethod(checkpoint) ? findNativeGroups(checkpoint) : [])
    groups.set(`${basesName(group).replace(/B_\w+$/, '')} ${group.projection} ${group.group}`, group);
  const found = new Map<string, Map<Projection, StoredMatrix[]>>();
  for (const tensor of checkpoint.tensors.values()) {
    for (const { prefix, expert, projection, matrix } of expertsOf(tensor, checkpoint)) {
      const layer = found.get(prefix) ?? new Map(PROJECTIONS.map((it) => [it, [] as StoredMatrix[]] as const));
      found.set(prefix, layer);
      (layer.get(projection) as StoredMatrix[])[expert] = matrix;
    }
  }
  return new Map(
    [...found].map(([prefix, matrices]) => {
      const factors = (projection: Projection): GroupPlan[] => {
        const parts: GroupPlan[] = [];
        for (let i = 0; ; i++) {
          const part = groups.get(`${prefix} ${projection} ${i}`);
          if (!part) return parts;
          parts.push(part);
        }
      };
      return [prefix, layerExperts(checkpoint, prefix, matrices, factors, width, tools)] as const;
    }),
  );
}

/** One projection of a layer. */
interface Part {
  readonly name: 'gate' | 'up' | 'down';
  readonly matrices: readonly StoredMatrix[];
  /** Groups of a factorised projection, in the order of their experts; empty if it is dense. */
  readonly groups: readonly FactorGroup[];
}

interface FactorGroup {
  readonly plan: GroupPlan;
  readonly bases: Unit;
  readonly coefficients: Weight;
}

function layerExperts(
  checkpoint: Checkpoint,
  prefix: string,
  matrices: ReadonlyMap<Projection, readonly StoredMatrix[]>,
  factors: (projection: Projection) => GroupPlan[],
  width: number,
  tools: ExpertTools,
): LayerExperts {
  const { reader, runner, cache } = tools;
  const count = Math.max(...[...matrices.values()].map(({ length }) => length));
  const parts = PROJECTIONS.map(
    (projection): Part => ({
      name: SHORT_NAMES[projection],
      matrices: matrices.get(projection) as StoredMatrix[],
      groups: factors(projection).map((plan) => factorGroup(checkpoint, plan, reader)),
    }),
  );
  const rows = (parts[0] as Part).matrices[0]?.rows ?? 0;
  const ranks = Object.fromEntries(
    parts.flatMap(({ name, groups: [first] }) => (first ? [[name, sizesOf(first.plan).rank]] : [])),
  );
  const shapes = gatedShapes({ width, rows }, ranks);
  for (const { name, matrices: own, groups } of parts) {
    const shape = shapes[groups.length ? `${name}A` : name] as number[];
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
    await reader.fill(buffers[groups.length ? `${name}A` : name] as Float32Array, matrix);
    if (groups.length === 0) return;
    const size = count / groups.length;
    const { plan, bases, coefficients } = groups[Math.floor(expert / size)] as FactorGroup;
    const { bases: m, rank: r, cols: d, activation } = sizesOf(plan);
    const alpha = new Float32Array(m);
    await reader.fill(alpha, coefficients.matrix, { first: expert % size, count: 1 });
    const { F } = await cache().with(bases, ({ B }) =>
      runner.run(mixBases, { bases: m, size: r * d, activation }, { B: B as NonNullable<typeof B>, alpha }, ['F']),
    );
    (buffers[`${name}F`] as Float32Array).set(F);
  };
  return {
    count,
    rows,
    ranks,
    bases: parts.flatMap(({ groups }) => groups.map(({ bases }) => bases)),
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

function factorGroup(checkpoint: Checkpoint, plan: GroupPlan, reader: WeightReader): FactorGroup {
  const { bases: m, rank: r, cols: d, experts: n } = sizesOf(plan);
  const stacked = findWeight(checkpoint, basesName(plan), [m * r, d]);
  return {
    plan,
    coefficients: findWeight(checkpoint, plan.names.shared.alpha as string, [n, m]),
    bases: {
      key: basesName(plan),
      shapes: { B: [m, r * d] },
      // Bases are needed only when an expert is rebuilt, so they may be evicted.
      needed: 'routed',
      fill: ({ B }) => reader.fill(B as Float32Array, stacked.matrix),
    },
  };
}

/** Models run from MoBE's native form, the only one that there is. */
const sizesOf = ({ problem }: GroupPlan): Problem => problem as Problem;

const basesName = ({ names }: GroupPlan): string => names.shared.B as string;
