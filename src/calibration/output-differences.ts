/** How the output of a layer's experts changes if one projection is replaced, the others as they are. */
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { addWeighted, byExpert, gatherRows, powerOfTwo } from '../inference/experts-layer.js';
import { replacedDifferences } from '../inference/feed-forward.js';
import type { Runner } from '../inference/runner.js';
import type { WeightReader } from '../inference/weight.js';
import { type ExpertLayer, PROJECTIONS, type Projection } from '../models/family.js';
import { SHORT_NAMES } from '../models/native.js';
import type { LayerRecord } from './record.js';

/** Rows of one run of the program. More tokens of an expert are computed one part after the other. */
const MOST_ROWS = 512;

/** Some tokens of a layer, with their experts. Letters: t tokens, d width, k experts a token. */
export interface RoutedTokens {
  readonly width: number;
  readonly expertsPerToken: number;
  /** (t, d) */
  readonly inputs: Float32Array;
  /** (t, k) */
  readonly experts: Int32Array;
  /** (t, k) */
  readonly weights: Float32Array;
}

/** A projection's new weights. */
export interface Replacement {
  readonly projection: Projection;
  /** Ŵ of an expert, (p, d), as it is factorised: down_proj is transposed. */
  expert(expert: number): Promise<Float32Array>;
}

/** Bytes for each token, and those that do not depend on the number of tokens. */
export interface Bytes {
  readonly token: number;
  readonly fixed: number;
}

/** Tools of `outputDifferences`. */
export interface DifferenceTools {
  readonly reader: WeightReader;
  readonly runner: Runner;
  /** Called before each expert. It may throw. */
  readonly beforeExpert: () => Promise<void>;
}

/** Reads some tokens of a record. @param tokens rising numbers */
export async function readTokens(record: LayerRecord, tokens: Int32Array): Promise<RoutedTokens> {
  const { width, expertsPerToken: k } = record;
  const inputs = new Float32Array(tokens.length * width);
  await record.readInputs(tokens, inputs);
  const experts = new Int32Array(tokens.length * k);
  const weights = new Float32Array(tokens.length * k);
  for (const [i, token] of tokens.entries()) {
    experts.set(record.experts.subarray(token * k, (token + 1) * k), i * k);
    weights.set(record.weights.subarray(token * k, (token + 1) * k), i * k);
  }
  return { width, expertsPerToken: k, inputs, experts, weights };
}

/** Bytes that `outputDifferences` holds. */
export function differenceBytes({ experts }: ExpertLayer, width: number, replaced: number): Bytes {
  const rows = (experts.up_proj[0] as StoredMatrix).rows;
  return {
    token: 4 * width * (2 + replaced),
    // Rebuilt weights of the expert before may still wait to be freed.
    fixed: 4 * ((3 + 2 * replaced) * rows * width + MOST_ROWS * ((2 + replaced) * width + 8 * rows)),
  };
}

/** The output of a layer's routed experts, and its changes. */
export interface OutputDifferences {
  /** Σ w·y (t, d) */
  readonly outputs: Float32Array;
  /** For each replacement Σ w·(ŷ − y) (t, d). */
  readonly changes: readonly Float32Array[];
}

/** Runs one expert after the other, so the weights of one are held. */
export async function outputDifferences(
  { experts }: ExpertLayer,
  tokens: RoutedTokens,
  replacements: readonly Replacement[],
  { reader, runner, beforeExpert }: DifferenceTools,
): Promise<OutputDifferences> {
  const { width, expertsPerToken: k, inputs, weights } = tokens;
  const rows = (experts.up_proj[0] as StoredMatrix).rows;
  const replaced = replacements.map(({ projection }) => SHORT_NAMES[projection]);
  const wanted = ['y', ...replaced] as const;
  const sums = wanted.map(() => new Float32Array(inputs.length));
  const held = Object.fromEntries(
    PROJECTIONS.map((projection) => [SHORT_NAMES[projection], new Float32Array(rows * width)]),
  );
  for (const [expert, places] of byExpert(tokens.experts)) {
    await beforeExpert();
    for (const projection of PROJECTIONS)
      await reader.fill(held[SHORT_NAMES[projection]] as Float32Array, experts[projection][expert] as StoredMatrix);
    const feeds: Record<string, Float32Array> = { ...held };
    for (const [i, name] of replaced.entries())
      feeds[`${name}New`] = await (replacements[i] as Replacement).expert(expert);
    for (let first = 0; first < places.length; first += MOST_ROWS) {
      const part = places.slice(first, first + MOST_ROWS);
      const room = powerOfTwo(part.length);
      const x = gatherRows(inputs, part, k, width, room);
      const sizes = { tokens: room, width, rows, replaced };
      const changes = await runner.run(replacedDifferences, sizes, { ...feeds, x }, wanted);
      for (const [which, name] of wanted.entries())
        addWeighted(sums[which] as Float32Array, changes[name], part, weights, k, width);
    }
  }
  const [outputs, ...changes] = sums;
  return { outputs: outputs as Float32Array, changes };
}
