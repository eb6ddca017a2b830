import { EngineError } from '../errors.js';
import type { EngineTensor } from './engine.js';
import type { Graph } from './graph.js';

/** The inputs of a graph with their tensors. Throws an `EngineError` if one is missing or has another shape. */
export function* matchInputs(
  graph: Graph,
  inputs: Readonly<Record<string, EngineTensor>>,
): Generator<[name: string, tensor: EngineTensor]> {
  for (const [name, { shape }] of graph.inputs) {
    const tensor = inputs[name];
    if (!tensor) throw new EngineError(`input "${name}" is missing`);
    if (String(tensor.shape) !== String(shape))
      throw new EngineError(`input "${name}" is [${tensor.shape}], expected [${shape}]`);
    yield [name, tensor];
  }
}
