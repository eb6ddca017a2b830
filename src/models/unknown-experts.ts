/** Makes the error for a checkpoint without experts that mobe can read. It shows the tensors that the checkpoint has instead. */
import type { TensorInfo } from '../checkpoint/header.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { describeQuantisation, quantisationEntries } from '../checkpoint/quantisation-entries.js';
import { foreignQuantisation } from '../checkpoint/quantised/foreign.js';
import { type InputError, UnknownModelError, UnsupportedQuantisationError } from '../errors.js';

/** The number of tensors that the error shows. */
const SHOWN = 3;

export function unknownExperts(checkpoint: Checkpoint, modelType: string): InputError {
  const { folder, config, tensors } = checkpoint;
  const experts = [...tensors.values()].filter(({ name }) => /(?:^|[._])experts?(?:[._]|$)/i.test(name));
  for (const tensor of experts) {
    const format = foreignQuantisation(tensor, checkpoint);
    if (!format) continue;
    const [entry] = quantisationEntries(config);
    const what = entry ? `${describeQuantisation(entry)}, as config.json says` : `${format}, by its name`;
    return new UnsupportedQuantisationError(tensor.name, tensor.file, what);
  }
  const alike = experts.length ? experts : [...tensors.values()].filter(({ name }) => /moe|expert/i.test(name));
  const seen = alike.length
    ? `Tensors that look like experts are ${largest(alike).map(describe).join(', ')}; expected are names like model.layers.0.mlp.experts.0.gate_proj.weight or model.layers.0.mlp.experts.gate_up_proj. Save the model with those names.`
    : 'None of its tensors has a name like an expert: it seems to be a dense model, which mobe does not compress.';
  return new UnknownModelError(folder, `Its model_type is "${modelType}". ${seen}`);
}

/** The largest tensors, in the order of the checkpoint. Experts are larger than routers. */
function largest(tensors: readonly TensorInfo[]): TensorInfo[] {
  const bytes = ({ start, end }: TensorInfo): number => end - start;
  const least = [...tensors].sort((a, b) => bytes(b) - bytes(a)).slice(0, SHOWN);
  return tensors.filter((tensor) => least.includes(tensor));
}

const describe = ({ name, dtype, shape }: TensorInfo): string => `${name} (${dtype} [${shape}])`;
