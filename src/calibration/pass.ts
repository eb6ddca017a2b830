/** Runs a model over chosen sequences, one layer after another, and records what each layer's experts see. */
import type { ExpertsObservation } from '../inference/experts-layer.js';
import type { LanguageModel } from '../inference/language-model.js';
import type { LayerSizes } from './layer-file.js';
import type { PassFolder, PassSizes } from './pass-folder.js';

/** The model, tokens and folder of a pass. */
export interface Pass {
  readonly model: LanguageModel;
  readonly folder: PassFolder;
  readonly sizes: PassSizes;
  /** (sequences, length) */
  readonly tokens: Int32Array;
  /** Called after each call of the layer, with the number of its sequences that are done. */
  readonly onSequences?: ((layer: number, done: number) => void) | undefined;
}

/** The layers with experts, sorted. */
export const expertLayers = (model: LanguageModel): number[] =>
  Array.from({ length: model.layers }, (_, layer) => layer).filter((layer) => model.expertsOf(layer));

/** The sizes of a layer's record; undefined if it is dense. */
export function layerSizes(
  model: LanguageModel,
  layer: number,
  { sequences, length }: PassSizes,
): LayerSizes | undefined {
  const experts = model.expertsOf(layer);
  return experts && { tokens: sequences * length, width: model.width, expertsPerToken: experts.perToken };
}

/**
 * Runs the next layer to its end, from where an interrupted pass stopped.
 * @param recorded whether its experts are recorded
 */
export async function runNextLayer(
  { model, folder, sizes, tokens, onSequences }: Pass,
  recorded = true,
): Promise<void> {
  const { layer } = folder;
  const { sequences, length } = sizes;
  const last = layer === expertLayers(model).at(-1);
  await folder.begin(recorded ? layerSizes(model, layer, sizes) : undefined, last);
  const most = Math.max(1, Math.floor(model.memory.batchTokens / length));
  while (folder.done < sequences) {
    const first = folder.done;
    const count = Math.min(most, sequences - first);
    const chosen = Array.from(tokens.subarray(first * length, (first + count) * length));
    const before = layer === 0 ? await model.embed(chosen) : await folder.read(first, count);
    const parts = Array.from({ length: count }, (_, i) => ({
      sequence: model.newSequence(),
      tokens: chosen.slice(i * length, (i + 1) * length),
    }));
    let observed: ExpertsObservation | undefined;
    const after = await model.runLayer(layer, before, parts, (it) => {
      observed = it;
    });
    await folder.write(after, observed);
    onSequences?.(layer, folder.done);
  }
  await folder.finish();
  model.forgetWeights();
}
