/** Weights of whole projections, rebuilt from probes. */
import type { Replacement } from '../../src/calibration/output-differences.js';
import { floatBytes } from '../../src/checkpoint/dtype.js';
import type { FactorFile } from '../../src/conversion/factor-files.js';
import { groupLabel } from '../../src/conversion/group-plan.js';
import type { Engine } from '../../src/engine/engine.js';
import { FactorMismatchError } from '../../src/errors.js';
import { decodeFactors, storedFactors } from '../../src/methods/factor-storage.js';
import type { Reconstruction } from '../../src/methods/method.js';
import { type MoeModel, PROJECTIONS, type Projection } from '../../src/models/family.js';
import type { RangeReader } from '../../src/sources/files.js';
import { type FactoredGroup, matchFactors, readFactors } from '../stages/rebuild.js';

/** A group with the path of its factor file. */
interface MatchedFile extends FactoredGroup {
  readonly path: string;
}

/** The probe of a projection: its groups, in order. */
export interface Probe {
  readonly layer: number;
  readonly projection: Projection;
  readonly groups: readonly MatchedFile[];
}

/**
 * The probes of a model by layer, in the order of the layers and of `PROJECTIONS`. Throws `FactorMismatchError` if a file is of
 * another model, or if the files of a projection are not all there.
 */
export function probesByLayer(
  files: readonly FactorFile[],
  model: MoeModel,
  sourceFingerprint: string,
): Map<number, Probe[]> {
  const matched = files.map((file) => ({ path: file.path, ...matchFactors(file, model, sourceFingerprint) }));
  const found = new Map<number, Probe[]>();
  for (const { layer } of model.layers) {
    const probes = PROJECTIONS.map((projection): Probe => {
      const own = matched.filter(({ group }) => group.layer === layer && group.projection === projection);
      return { layer, projection, groups: own.sort((a, b) => a.group.group - b.group.group) };
    }).filter(({ groups }) => groups.length > 0);
    for (const { groups } of probes) checkComplete(groups);
    if (probes.length) found.set(layer, probes);
  }
  return found;
}

function checkComplete(groups: readonly MatchedFile[]): void {
  const [{ path, group }] = groups as [MatchedFile];
  if (groups.length !== group.groups || groups.some((it, i) => it.group.group !== i))
    throw new FactorMismatchError(
      path,
      `the files of all ${group.groups} parts of ${groupLabel({ ...group, groups: 1 })} are needed, each once`,
    );
}

/** Bytes that rebuilding an expert holds: the shared factors as stored and decoded, the expert's own, and the weights. */
export const rebuildBytes = ({ groups }: Probe): number =>
  Math.max(
    ...groups.map(({ group: { method, problem, dtype } }) => {
      const { shared, byExpert } = method.stores(problem);
      const count = (factors: typeof shared): number =>
        factors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
      return (4 + floatBytes(dtype)) * (count(shared) + count(byExpert)) + 8 * problem.rows * problem.cols;
    }),
  );

/** The weights that a probe rebuilds. The shared factors of one group are held. Experts should be asked for in order. */
export class ProbeWeights implements Replacement {
  readonly projection: Projection;
  private held: { readonly group: FactoredGroup; readonly reconstruction: Reconstruction } | undefined;

  constructor(
    private readonly probe: Probe,
    private readonly reader: RangeReader,
    private readonly engine: Engine,
  ) {
    this.projection = probe.projection;
  }

  async expert(expert: number): Promise<Float32Array> {
    const { groups } = this.probe;
    const size = (groups[0] as FactoredGroup).group.problem.experts;
    const group = groups[Math.floor(expert / size)] as FactoredGroup;
    const reconstruction = await this.load(group);
    const own = await readFactors(group.own(expert % size), this.reader);
    return reconstruction.expert(expert % size, decodeFactors(storedFactors(group.group).byExpert, own));
  }

  private async load(group: FactoredGroup): Promise<Reconstruction> {
    if (this.held?.group === group) return this.held.reconstruction;
    await this.dispose();
    const { method, problem } = group.group;
    const stored = await readFactors(group.shared, this.reader);
    const shared = decodeFactors(storedFactors(group.group).shared, stored);
    const reconstruction = await method.rebuild(this.engine, problem, shared);
    this.held = { group, reconstruction };
    return reconstruction;
  }

  async dispose(): Promise<void> {
    await this.held?.reconstruction.dispose();
    this.held = undefined;
  }
}
