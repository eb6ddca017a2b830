import { type Checkpoint, CONFIG_FILE } from '../checkpoint/open-checkpoint.js';
import { UnknownActivationError } from '../errors.js';
import { fileIn } from '../location.js';
import type { Activation } from '../methods/mobe/problem.js';
import { languageConfig } from '../models/language-config.js';

/** The names of transformers. */
const ACTIVATIONS: Readonly<Record<string, Activation>> = {
  silu: 'silu',
  swish: 'silu',
  gelu: 'gelu',
  gelu_new: 'gelu',
  gelu_pytorch_tanh: 'gelu',
  gelu_fast: 'gelu',
  relu: 'relu',
};

/** The activation of a model's experts; silu if its config does not say. Throws `UnknownActivationError`. */
export function hiddenActivation({ folder, config }: Pick<Checkpoint, 'folder' | 'config'>): Activation {
  const { hidden_act, hidden_activation } = languageConfig(config);
  const name = String(hidden_act ?? hidden_activation ?? 'silu');
  const known = ACTIVATIONS[name];
  if (!known) throw new UnknownActivationError(fileIn(folder, CONFIG_FILE), name);
  return known;
}
