/** The tokens that the router sent to each expert of a layer. */
import { DamagedRecordError } from '../errors.js';
import type { LayerRecord } from './record.js';

/** The tokens of an expert. */
export interface ExpertTokens {
  /** Their numbers in the record, rising. */
  readonly tokens: Int32Array;
  /** w: the factor of the expert's output. */
  readonly weights: Float32Array;
  /** v = w/rms: how much a token counts, since the next layer divides by the rms of the residual stream. */
  readonly importance: Float32Array;
}

/** Sorts a layer's tokens by the experts that they were sent to. Throws `DamagedRecordError` if one is of no expert. */
export function tokensOfExperts(layer: LayerRecord, experts: number): ExpertTokens[] {
  const { expertsPerToken: k } = layer;
  const counts = new Int32Array(experts);
  for (const expert of layer.experts) {
    if (expert >= experts)
      throw new DamagedRecordError(layer.name, `it names expert ${expert}, and the layer has ${experts} experts`);
    counts[expert] = (counts[expert] as number) + 1;
  }
  const found = Array.from(counts, (count) => ({
    tokens: new Int32Array(count),
    weights: new Float32Array(count),
    importance: new Float32Array(count),
  }));
  counts.fill(0);
  for (const [place, expert] of layer.experts.entries()) {
    const token = Math.floor(place / k);
    const own = found[expert] as (typeof found)[number];
    const at = counts[expert] as number;
    const weight = layer.weights[place] as number;
    own.tokens[at] = token;
    own.weights[at] = weight;
    own.importance[at] = weight * (layer.scale[token] as number);
    counts[expert] = at + 1;
  }
  return found;
}
