/** The native checkpoint of truncated SVDs: two matrices for each expert. */
import { MissingExpertError, UnequalExpertError } from '../../errors.js';
import type { NativeFactors, NativePlace, NativeSource } from '../method.js';
import type { Problem } from './problem.js';

export const native: NativeFactors<Problem> = {
  marker: /^((?:.+\.)?(?:layers|blocks)\.(\d+)\.(?:.+\.)?)experts\.0\.(gate|up|down)_proj\.V$/,
  example: 'model.layers.0.mlp.experts.0.gate_proj.V',
  names: (place, experts) => ({
    shared: {},
    experts: Array.from({ length: experts }, (_, i) => ({ A: nameOf(place, i, 'A'), V: nameOf(place, i, 'V') })),
  }),
  problem(place, marked, source) {
    const [A, V] = [source.tensors.get(nameOf(place, 0, 'A')), marked];
    if (!A) throw new MissingExpertError(nameOf(place, 0, 'A'), source.folder);
    const [p, r] = A.shape as [number, number];
    const d = V.shape[1] as number;
    if (A.shape.length !== 2 || V.shape.length !== 2 || V.shape[0] !== r)
      throw new UnequalExpertError(A.name, A.file, `has shape [${A.shape}], not [p, r] for a V of [${V.shape}]`);
    return { experts: countExperts(place, source), rows: p, cols: d, rank: r };
  },
  sizes: ({ rank }) => ({ rank }),
};

/** `experts.{j}.gate_proj.A`: A·σ, [p, r], and `.V` [r, d]. */
const nameOf = ({ prefix, projection }: NativePlace, expert: number, factor: 'A' | 'V'): string =>
  `${prefix}experts.${expert}.${projection}.${factor}`;

/** Experts by the prefix of their names, for each projection. A checkpoint is searched once. */
const counts = new WeakMap<NativeSource['tensors'], ReadonlyMap<string, number>>();

/** The number of experts: one more than the largest number, so that one without tensors is missed. */
function countExperts({ prefix, projection }: NativePlace, { tensors }: NativeSource): number {
  const found = counts.get(tensors) ?? countAll(tensors);
  counts.set(tensors, found);
  return found.get(`${prefix} ${projection}`) ?? 0;
}

function countAll(tensors: NativeSource['tensors']): Map<string, number> {
  const found = new Map<string, number>();
  for (const name of tensors.keys()) {
    const match = /^(.*\.)experts\.(\d+)\.(\w+)\.[AV]$/.exec(name);
    // There cannot be more experts than tensors. A damaged name could claim any number.
    if (!match || Number(match[2]) >= tensors.size) continue;
    const key = `${match[1]} ${match[3]}`;
    found.set(key, Math.max(found.get(key) ?? 0, Number(match[2]) + 1));
  }
  return found;
}
